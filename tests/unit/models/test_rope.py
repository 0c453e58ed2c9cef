"""RoPE frequencies: the recorded 32-bit words, the correctly rounded ones, and how each kind scales them."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

from octavo.models.rope import RopeConfig, inverse_frequencies, yarn_attention_factor
from tests.support.rope_cases import CASES

# The tables as 32-bit words in hexadecimal. Their powers are those of arithmetic with 60 digits (see below).
WORDS = {
    "llama-2": (
        "3f8000003f5dafd73f3ff9113f263de03f0ff59a3ef953cf3ed7e89b3ebaf81b3ea1e89b3e8c35043e72d4233e5247ed3e361887"
        "3e1db0403e088d773dec7fd63dcccccd3db159783d99940d3d84fe4d3d6655c23d47763f3d2cba153d1593483d0186e33ce054d2"
        "3cc2434f3ca8398b3c91ad393c7c4d333c5a7bf23c3d33113c23d70a3c0de12d3bf5b9b03bd4ca153bb8449c3b9f91cc3b8a2e77"
        "3b6f520e3b4f3e383b33770f3b1b690d3b06946f3ae915283ac9d75c3aaec98e3a975c0e3a83126f3a6301e23a44948c3a2a3b44"
        "3a136a1639ff4fac39dd172539bf74d739a5cb60398f92723978a815395753e4393a775339217916390bd47238f22ce2"
    ),
    "qwen2": (
        "3f8000003f263de03ed7e89b3e8c35043e3618873dec7fd63d99940d3d47763f3d0186e33ca8398b3c5a7bf23c0de12d3bb8449c"
        "3b6f520e3b1b690d3ac9d75c3a83126f3a2a3b4439dd1725398f9272393a775338f22ce2389d43a4384c3fbe3804a2b237ac431d"
        "375fba4f371148e336bcb0c136751070361f23e435ceaf79"
    ),
    "qwen3": (
        "3f8000003f4e4bad3f263de03f05f6ef3ed7e89b3eadfcff3e8c35043e61f8353e3618873e12bd913dec7fd63dbe94c63d99940d"
        "3d7785133d47763f3d20bc1d3d0186e33cd0c1a83ca8398b3c8790083c5a7bf23c3010523c0de12d3be4aa463bb8449c3b947dae"
        "3b6f520e3b40dac53b1b690d3afa78f03ac9d75c3aa2a6f73a83126f3a533f283a2a3b443a092e0239dd172539b229fa398f9272"
        "39676492393a77533916432438f22ce238c327b5389d43a4387d75d4384c3fbe382497ab3804a2b237d5c44137ac431d378ad0ed"
        "375fba4f37344a0e371148e336ea273236bcb0c136980e023675107036457bab361f23e436003dec35ceaf7935a68e4c"
    ),
    "smollm2": (
        "3f8000003f32a5063ef953cf3eadfcff3e72d4233e2974093dec7fd63da509563d6655c23d20bc1d3ce054d23c9c8b973c5a7bf2"
        "3c1877053bd4ca153b947dae3b4f3e383b109edb3ac9d75c3a8cd9db3a44948c3a092e0239bf74d739859aa9393a775339021f2b"
        "38b59b1b387d75d43830df5237f6da9637ac431d37706b6d"
    ),
    "llama-3.1": (
        "3f8000003f508ac13f29e1c63f0a63843ee177bc3eb7ab7d3e959ee33e73c4613e4693b03e21c3a03e03c6a03dd6b19c3daee4ad"
        "3d8e78983d681e673d3d16843d1a08c83cfaf53f3ccc6f493ca689393c87a9c33c5d06ec3c340d6d3c12ac7f3beef74f3bc2aa76"
        "3b9e94023b812e353b5277203b0dfd063ab3d11d3a60979e3a0995d239a3f108393b2dd238c8688638a3418d3884fdbf3858ac81"
        "38308199380fc8f837ea426f37bed4f4379b7475377d45c3374e51f53728126b3708ea0f36df10c436b5b687369406cb36712b80"
        "3644761036200a6936025f3435d4680835ad07a7358cf4003565a54d353b12c7351864a734f848c234ca41b034a4c2ff"
    ),
    "linear": (
        "3e8000003e534db03e2e69283e0ff59a3deda63c3dc428223da1e89b3d85a3da3d5c9d353d3618873d164d7a3cf81eef3ccccccd"
        "3ca90af33c8b87543c6655c23c3e1e953c1cece93c0186e33bd5d2f63bb07dc63b91ad393b707bf63b467f283b23d70a3b073bf8"
        "3adf3ee93ab8449c3a98187a3a7b14a33a4f3e383a2b0f2e3a0d316939e9152839c0632e399ecc1d3983126f39585ff2393298ba"
        "39136a1638f35a5c38c8dd4f38a5cb603888d8f23861e8a7383a77533819e8f237fe1363"
    ),
    "yarn": (
        "3f8000003f4e4bad3f263de03f05f6ef3ed7e89b3eadfcff3e8c35043e61f8353e3618873e12bd913dec7fd63dbe94c63d99940d"
        "3d7785133d47763f3d20bc1d3d0186e33cd0c1a83ca8398b3c8790083c5a7bf23c3010523c0de12d3be4aa463bb023773b876388"
        "3b4fa5503b1ed2483af241df3ab82bc03a8b82073a527db83a1e0eb239ec196839af3d0239811c3e393c93be39083e3738c23e9a"
        "38881d0a383a77533816432437f22ce237c327b5379d43a4377d75d4374c3fbe372497ab3704a2b236d5c44136ac431d368ad0ed"
        "365fba4f36344a0e361148e335ea273235bcb0c135980e023575107035457bab351f23e435003dec34ceaf7934a68e4c"
    ),
}


def words(name: str) -> str:
    return inverse_frequencies(*CASES[name]).view(np.uint32).astype(">u4").tobytes().hex()


@pytest.mark.parametrize("name", CASES)
def test_tables_are_the_recorded_words(name):
    assert words(name) == WORDS[name]


@pytest.mark.parametrize(("theta", "head_dim"), [(1e4, 128), (1e6, 128), (5e5, 128), (1e5, 64), (1e4, 96), (1e6, 64)])
def test_powers_are_rounded_once(theta, head_dim):
    """Against decimal arithmetic: exponent and reciprocal are float32, the power between them is exact but for its one
    rounding.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    with localcontext() as context:
        context.prec = 60
        powers = [np.float32(float(Decimal(theta) ** Decimal(float(exponent)))) for exponent in exponents]
    expected = np.float32(1) / np.array(powers, np.float32)
    np.testing.assert_array_equal(inverse_frequencies(RopeConfig(theta=theta), head_dim), expected)


def test_yarn_attention_factor():
    assert yarn_attention_factor(1.0) == 1.0
    assert yarn_attention_factor(4.0) == pytest.approx(1.1386294)
    assert yarn_attention_factor(40.0, 0.707, 0.707) == 1.0


def test_frequencies():
    np.testing.assert_allclose(inverse_frequencies(RopeConfig(theta=100.0), 4), [1.0, 0.1], rtol=1e-6)
    divided = inverse_frequencies(RopeConfig(theta=100.0), 4, np.array([1.0, 4.0], np.float32))
    np.testing.assert_allclose(divided, [1.0, 0.025], rtol=1e-6)
    linear = inverse_frequencies(RopeConfig("linear", 100.0, 4.0), 4)
    np.testing.assert_allclose(linear, [0.25, 0.025], rtol=1e-6)
