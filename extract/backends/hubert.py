"""Audio backend `hubert`: HuBERT base, last hidden state, 768 numbers a row."""

from extract.backends import _speech
from extract.networks import weights

MODALITY = "audio"
VERSION = "1"
DESCRIPTION = "HuBERT's last hidden state, from 50 Hz to the rows' instants"
SOURCE = weights.Source(
    "hubert",
    option="--audio_weights",
    instead="--audio=logmel",
    file="pytorch_model.bin",
    repository="facebook/hubert-base-ls960",
    revision="dba3bb02fda4248b6e082697eee756de8fe8aa8a",
    sha256="062249fffb353eab67547a2fbc129f7c31a2f459faf641b19e8fb007cc5c48ad",
    kind="hubert",
    preparation=_speech.PREPARATION,
)

find = SOURCE.find
make, width, network = _speech.make, _speech.width, _speech.network
