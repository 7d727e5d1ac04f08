"""Every architecture of transformers and monai with grouped convolutions: found, rewritten, proved.

The tables come of building all that a configuration alone builds (`small_configs`). What is not
rewritten here holds the same layers as what is, or is too large, or takes inputs of its own.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import groupfx
from groupfx.convs.names import unnumbered
from groupfx.passes import SplitGroupedConv
from groupfx.running.inputs import ExampleInputs
from tests.models.small_configs import build, inputs_of, kinds, search
from tests.models.zoo import GroupedCalls

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]
TESTED = "5.23.0"
"""The version of transformers that the tables are of."""


def _table(text: str) -> dict[str, int]:
    return {name: int(count) for name, count in (entry.split(":") for entry in text.split())}


# Model type: how many grouped convolution modules it holds, at an eighth of its width.
HOLDS = _table(
    """
align:55 align_vision_model:55 bailing_hybrid:2 bamba:2 canary:4 cohere_asr:4 convbert:2
convnext:4 convnextv2:4 csm:1 cvt:39 d_fine:7 data2vec-audio:5 deimv2:7 dinov3_convnext:4
edgetam_video:2 efficientloftr:4 efficientnet:55 eomt:2 eomt_dinov3:2 falcon_h1:2 falcon_mamba:2
fastspeech2_conformer:8 fastspeech2_conformer_with_hifigan:8 florence2:16 florence_vision:16
focalnet:8 fun_asr_nano:2 fun_asr_nano_encoder:2 gemma3n_audio:2 gemma4_audio:2 glm5_next:2
glm5_next_text:2 glpn:2 granite_speech:2 granite_speech5_ctc:2 granite_speech5_encoder:2
granite_speech_encoder:2 granite_speech_plus:2 granite_speech_plus_encoder:2 granitemoehybrid:2
hgnet_v2:5 hubert:1 inkling2:8 inkling2_text:8 inkling_mm_model:8 inkling_text:8 jamba:2 jev:2
kimi_linear:2 lasr_ctc:2 lasr_encoder:2 lfm3:2 lfm3_vl:4 lfm3_vl_vision:2 mamba:2 mamba2:2
mgp-str:6 mimi:1 mimi_decoder:1 minicpm_ocr:2 minicpmv4_6:2 minicpmv4_7:2 mobilenet_v1:13
mobilenet_v2:17 mobilevit:7 mobilevitv2:9 muse_spark:2 muse_spark_audio:2 nemo_speechlm:23
nemotron3_5_asr:4 nemotron_asr_streaming:4 nemotron_asr_streaming_encoder:4 nemotron_h:1
nemotron_h_omni:1 neucodec:2 nystromformer:2 olmo_hybrid:2 parakeet_ctc:4 parakeet_encoder:4
parakeet_rnnt:4 parakeet_tdt:4 phi4_multimodal:4 phi4_multimodal_audio:4
pocket_tts_audio_tokenizer:1 pocket_tts_audio_tokenizer_decoder:1 pp_doclayout_v2:5
pp_doclayout_v3:5 pp_doclayout_v4:5 pp_lcnet:13 pp_lcnet_v3:70 pp_lcnet_v4:13
pp_ocrv5_mobile_det:70 pp_ocrv5_mobile_rec:70 pp_ocrv5_server_rec:6 pp_ocrv6_small_det:17
pp_ocrv6_small_rec:13 pp_ocrv6_tiny_rec:13 pvt_v2:2 qwen3_5:2 qwen3_5_moe:2 qwen3_5_moe_text:2
qwen3_5_text:2 qwen3_next:2 qwen4_exp:2 qwen4_exp_text:2 recurrent_gemma:2 regnet:1 sam2_video:2
sam3_lite_text:4 sam3_lite_text_text_model:4 sam3_tracker_video:2 sam3_video:2 seamless_m4t:2
seamless_m4t_v2:2 segformer:2 sew:1 sew-d:1 speech-encoder-decoder:1 squeezebert:10
swiftformer:4 unispeech:1 unispeech-sat:1 vibevoice:21 vibevoice_acoustic_tokenizer:14
vibevoice_acoustic_tokenizer_decoder:7 vibevoice_acoustic_tokenizer_encoder:7 vibevoice_asr:14
videomt:2 vits:20 wav2vec2:1 wav2vec2-bert:2 wav2vec2-conformer:3 wavlm:1 xcodec:1 xcodec2:2
zamba:76 zamba2:54 zaya:4
    """
)

# Model type: how many grouped convolutions one forward of it runs.
RUNS = _table(
    """
canary:4 cohere_asr:4 convbert:2 convnext:4 convnextv2:4 dinov3_convnext:4 falcon_mamba:2
fastspeech2_conformer:8 focalnet:8 glpn:2 granite_speech5_encoder:2 hubert:1 lasr_ctc:2
lasr_encoder:2 lfm3:2 mamba:2 mobilenet_v1:13 mobilenet_v2:17 mobilevitv2:9 nemotron3_5_asr:4
nemotron_asr_streaming:4 nystromformer:2 parakeet_ctc:4 parakeet_rnnt:4 parakeet_tdt:4
pp_lcnet:13 pvt_v2:2 recurrent_gemma:2 regnet:1 segformer:2 squeezebert:10 swiftformer:4
unispeech:1 wav2vec2:1 wav2vec2-bert:2 zaya:4 data2vec-audio:5 qwen3_5_text:2
    """
)


def test_no_architecture_with_grouped_convs_is_missing() -> None:
    transformers = pytest.importorskip("transformers")
    found = search()
    skipped = f"not built: {dict(found.unbuilt)}"
    sys.stdout.write(f"{len(found.holds)} of {len(kinds())} hold some; {skipped}\n")
    assert len(found.holds) + found.without + found.unbuilt.total() == len(kinds())
    if transformers.__version__ == TESTED:
        assert found.holds == HOLDS
    assert HOLDS.keys() >= RUNS.keys()


def holds(model: nn.Module, inputs: Any, calls: int) -> None:
    """All of them are found; those of few groups are split, and the whole is proved."""
    example = ExampleInputs.of(inputs)
    with GroupedCalls() as seen, torch.no_grad():
        example.map(torch.clone).call(model)
    assert seen.kinds.total() == calls
    found = groupfx.find(model, example)
    assert sum({unnumbered(site.name): site.calls for site in found}.values()) == calls
    smallest = min(site.groups or 1 for site in found)
    passes = [SplitGroupedConv(depthwise="split", max_groups=max(16, smallest))]
    report = groupfx.rewrite(model, example, passes=passes).report
    assert report.ok
    assert report.verified
    assert report.sites
    assert all("branches" in site.reason for site in report.skipped)


@pytest.mark.parametrize("kind", RUNS)
def test_an_architecture_of_transformers(kind: str) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = build(kind, 8)
    assert model is not None
    model.config.use_cache = False  # type: ignore[union-attr]
    holds(model, inputs_of(model), RUNS[kind])


def _nets() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # monai's import warns about its own dependencies
        return pytest.importorskip("monai.networks.nets")


def efficientnet(dims: int, **options: Any) -> nn.Module:
    return _nets().EfficientNetBN(
        "efficientnet-b0", pretrained=False, spatial_dims=dims, in_channels=1, **options
    )


def mednext(dims: int) -> nn.Module:
    return _nets().MedNeXt(
        spatial_dims=dims,
        init_filters=4,
        in_channels=1,
        blocks_down=(1, 1, 1, 1),
        blocks_up=(1, 1, 1, 1),
        blocks_bottleneck=1,
    )


def flexible() -> nn.Module:
    return _nets().FlexibleUNet(1, 2, "efficientnet-b0", spatial_dims=2)


def senet() -> nn.Module:
    return _nets().SENet(2, 1, "se_bottleneck", (1, 1, 1, 1), 4, 8, inplanes=8, num_classes=3)


MONAI: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "efficientnet-1d": (lambda: efficientnet(1), (2, 1, 64), 16),
    "efficientnet-2d": (lambda: efficientnet(2), (2, 1, 32, 64), 16),
    "efficientnet-3d": (lambda: efficientnet(3), (2, 1, 32, 32, 32), 16),
    "flexible-unet": (flexible, (2, 1, 64, 64), 16),
    "mednext-2d": (lambda: mednext(2), (2, 1, 32, 48), 17),
    "senet": (senet, (2, 1, 64, 48), 4),
}


@pytest.mark.parametrize("name", MONAI)
def test_an_architecture_of_monai(name: str) -> None:
    make, shape, calls = MONAI[name]
    torch.manual_seed(0)
    holds(make().eval(), torch.randn(shape), calls)
