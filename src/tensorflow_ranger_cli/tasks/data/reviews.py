"""Short texts of four kinds, each with the mean of what people thought of its sentiment."""

import html
import io
import re
import tarfile
import zlib

import numpy as np

from tensorflow_ranger_cli.tasks.data.files import Downloaded, member
from tensorflow_ranger_cli.tasks.data.split import split

DOMAINS = ("tweet", "film review", "product review", "newspaper")
SENTIMENTS = ("negative", "neutral", "positive")
NEUTRAL = 0.5  # scores of at most that are, from -4 to 4
WORDS = 48  # of a text: 99 % have no more
BUCKETS = 20_000
PADDING = 0  # behind a text's end
HELD_OUT = 3_000

FILE = Downloaded(
    what="the reviews",
    name="vaderSentiment-2.5.tar.gz",
    sha256="b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
    download="pip download --no-deps --no-binary :all: vaderSentiment==2.5 --dest",
)
_INNER = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBERS = ("tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")
_TOKEN = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[^\sa-z0-9]+")


def texts():
    """Return the texts with their domains and scores, in the order of the archive.

    Returns:
        ``(texts, domains, scores)``: a list of strings, int32 indices into `DOMAINS`, and float32
        from -4 (most negative) to 4.

    Raises:
        CommandError: The data is missing or another.
    """
    archive = FILE.read()
    found, domains, scores = [], [], []
    for number, domain in enumerate(DOMAINS):
        for line in table(archive, domain):
            _, score, text = line.split("\t", 2)
            found.append(html.unescape(text))
            domains.append(number)
            scores.append(score)
    return found, np.array(domains, "int32"), np.array(scores, "float32")


def table(archive, domain):
    """Return the lines of a domain, each with its number, its score and its text between tabs.

    Args:
        archive: Bytes of `FILE`.
        domain: One of `DOMAINS`.
    """
    name = _MEMBERS[DOMAINS.index(domain)]
    with tarfile.open(fileobj=io.BytesIO(archive)) as outer:
        inner = member(outer, _INNER)
    with tarfile.open(fileobj=io.BytesIO(inner)) as tables:
        lines = member(tables, f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
    return lines.decode("utf-8", "replace").splitlines()


def load():
    """Return the texts as word numbers, shuffled and split the same way in every run.

    Returns:
        ``((words, domains, sentiments), (words, domains, sentiments))`` for the training and 3,000
        held-out texts: int32 of shape ``(n, 48)``, with 0 behind a text's end, and int32 indices
        into `DOMAINS` and `SENTIMENTS`.

    Raises:
        CommandError: The data is missing or another.
    """
    found, domains, scores = texts()
    numbers = encode(found)
    # A text that is there twice is kept once, lest it be trained on and held out.
    once = np.sort(np.unique(numbers, axis=0, return_index=True)[1])
    arrays = [array[once] for array in (numbers, domains, sentiments_of(scores))]
    training, held_out = ([a[rows] for a in arrays] for rows in split(len(once), HELD_OUT))
    return tuple(training), tuple(held_out)


def sentiments_of(scores):
    """Return indices into `SENTIMENTS` for an array of scores."""
    return (1 + (scores > NEUTRAL) - (scores < -NEUTRAL)).astype("int32")


def encode(texts):
    """Return the numbers of the texts' first words, int32 of shape ``(n, 48)``.

    A word's number is its hash: there is no vocabulary to keep beside a trained model. 0 stands
    behind the end.
    """
    numbers = np.zeros((len(texts), WORDS), "int32")
    for row, text in zip(numbers, texts, strict=True):
        words = _TOKEN.findall(text.lower())[:WORDS]
        row[: len(words)] = [1 + zlib.crc32(word.encode()) % (BUCKETS - 1) for word in words]
    return numbers
