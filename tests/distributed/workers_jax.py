import json, os, sys
kind=sys.argv[1]
os.environ["KERAS_BACKEND"]="jax"
os.environ["XLA_FLAGS"]="--xla_cpu_use_fusion_emitters=false --xla_force_host_platform_device_count="+dict(dp="2",mp="4",multi="2")[kind]
import jax, keras
if kind=="multi":
    jax.config.update("jax_cpu_collectives_implementation","gloo")
    keras.distribution.initialize()
from tests.distributed import cases
if kind=="mp":
    mesh=keras.distribution.DeviceMesh((2,2),["batch","model"])
    lm=keras.distribution.LayoutMap(mesh)
    lm[".*dense.*kernel"]=(None,"model") if False else ("model",None)
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=lm,batch_dim_name="batch"))
else:
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
out={}
for name,case in cases.CASES.items():
    if len(sys.argv)>2 and name not in sys.argv[2:]: continue
    r,m=cases.run(case,jax.process_index(),jax.process_count())
    out[name]=r
json.dump(out,open(f"/tmp/p/jax_{kind}{jax.process_index()}.json","w"))
