"""Audio backend `wav2vec2`: Wav2Vec2 base, last hidden state, 768 numbers a row."""

from extract.backends import _speech
from extract.networks import weights

MODALITY = "audio"
VERSION = "1"
DESCRIPTION = "Wav2Vec2's last hidden state, from 50 Hz to the rows' instants"
SOURCE = weights.Source(
    "wav2vec2",
    option="--audio_weights",
    instead="--audio=logmel",
    repository="facebook/wav2vec2-base-960h",
    revision="22aad52d435eb6dbaf354bdad9b0da84ce7d6156",
    sha256="8aa76ab2243c81747a1f832954586bc566090c83a0ac167df6f31f0fa917d74a",
    kind="wav2vec2",
    preparation=_speech.PREPARATION,
)

find = SOURCE.find
make, width, network = _speech.make, _speech.width, _speech.network
