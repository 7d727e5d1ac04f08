"""Models with grouped convolutions from transformers and monai: small, random, nothing downloaded.

Each function skips the test that calls it where its library is not installed.
"""

import warnings

import pytest
from torch import nn


def regnet(layer_type: str) -> nn.Module:
    """RegNet with 5 grouped 3x3 convs of 2, 3, 3, 4 and 6 groups; `y` has squeeze-and-excite."""
    transformers = pytest.importorskip("transformers")
    config = transformers.RegNetConfig(
        embedding_size=7,
        hidden_sizes=[10, 15, 20, 30],
        depths=[1, 2, 1, 1],
        groups_width=5,
        layer_type=layer_type,
        num_labels=11,
    )
    return transformers.RegNetForImageClassification(config)


def squeezebert() -> nn.Module:
    """SqueezeBERT: in each of 2 layers 5 grouped 1x1 Conv1d of 2, 3, 4, 4 and 6 groups."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SqueezeBertConfig(
        vocab_size=53,
        hidden_size=24,
        embedding_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=36,
        max_position_embeddings=17,
        q_groups=2,
        k_groups=3,
        v_groups=4,
        intermediate_groups=4,
        output_groups=6,
    )
    return transformers.SqueezeBertModel(config)


def wav2vec2() -> nn.Module:
    """Wav2Vec2: one grouped Conv1d whose weight is computed by the new `weight_norm`."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=20,
        num_hidden_layers=2,
        num_attention_heads=5,
        intermediate_size=29,
        conv_dim=(7, 7, 11),
        conv_stride=(5, 2, 2),
        conv_kernel=(10, 3, 3),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0,
    )
    return transformers.Wav2Vec2Model(config)


def se_resnext50(spatial_dims: int) -> nn.Module:
    """SE-ResNeXt-50, all 16 blocks, with 4 groups instead of 32 and so an eighth of the width."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # monai's import warns about its own dependencies
        nets = pytest.importorskip("monai.networks.nets")
    return nets.SEResNext50(
        spatial_dims=spatial_dims, in_channels=3, num_classes=7, groups=4, inplanes=13
    )
