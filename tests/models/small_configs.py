"""Any model of transformers that its configuration alone builds, small, and inputs that it takes.

`python -m tests.models.small_configs` prints which of them hold grouped convolutions.
"""

import importlib
import inspect
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

# What a number of a configuration is, by its name.
_DEPTH = re.compile(r"num_.*(layers|blocks)|n_layers?$|depths?$|_layers$|^layers$|layers_per")
_WIDTH = re.compile(
    r"hidden|embed|inter|ffn|_?dims?$|d_model|channels|width|filters|_sizes?$|inner|rank|features"
    r"|units|d_state|_out$|base|d_ssm"
)
_KEPT = re.compile(
    r"image_size|patch|kernel|stride|vocab|window|num_channels|pool|crop|input_size|num_heads|n_head"
    r"|in_chans|num_mel|feature_size_|conv_pos|position|resolution|stem_size|shape|token|mel|grid"
    r"|tubelet|spatial|temporal|dilat|padding|group|_ratio|expand|d_conv|tile|state_size$|chunk_size"
)
_VOCABULARY = 128


def shrink(config: Any, by: int) -> Any:
    """The same configuration with two layers, a `by`-th of the width and a small vocabulary."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "model_type"):
            shrink(value, by)
            continue
        small = _small(name, value, by)
        if small is not value:
            setattr(config, name, small)
    return config


def _small(name: str, value: Any, by: int) -> Any:
    if type(value) is int:
        if "vocab" in name or name.endswith(("_token_id", "token_index")):
            return value if value < _VOCABULARY else _VOCABULARY if "vocab" in name else 2
        if _DEPTH.search(name):
            return min(value, 2)
        narrow = _WIDTH.search(name) and not _KEPT.search(name) and value >= 64
        return value // by if narrow and value % by == 0 else value
    if isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
        if _DEPTH.search(name):
            return type(value)(min(v, 1) for v in value)
        narrow = _WIDTH.search(name) and not _KEPT.search(name)
        return type(value)(v // by for v in value) if narrow else value
    return value


def kinds() -> list[str]:
    """Every model type that transformers knows."""
    auto = importlib.import_module("transformers.models.auto.configuration_auto")
    return sorted(auto.CONFIG_MAPPING_NAMES)


def build(kind: str, by: int) -> nn.Module | None:
    """The model of a type, in eval mode; None where its configuration names no class of model."""
    transformers: Any = importlib.import_module("transformers")
    config = transformers.CONFIG_MAPPING[kind]()
    made = _class_of(type(config))
    return None if made is None else made(shrink(config, by) if by > 1 else config).eval()


def _class_of(config: type) -> Any:
    transformers: Any = importlib.import_module("transformers")
    try:
        found = transformers.MODEL_MAPPING[config]
        return found[0] if isinstance(found, list | tuple) else found
    except (KeyError, ValueError):
        pass  # a part of others, whose class stands beside them
    try:
        module = importlib.import_module(config.__module__.replace("configuration_", "modeling_"))
    except ImportError:
        return None
    classes = [
        each
        for each in vars(module).values()
        if isinstance(each, type)
        and issubclass(each, transformers.PreTrainedModel)
        and "forward" in vars(each)
        and _takes(each, config)
    ]
    return min(classes, key=lambda each: len(each.__name__), default=None)


def _takes(model: type, config: type) -> bool:
    given = inspect.signature(model.__init__).parameters.get("config")
    own = getattr(model, "config_class", None)
    return own is config or (given is not None and given.annotation is config)


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    """Keyword arguments that `model` takes: of its main input and of what it asks for.

    Raises `LookupError` with the first refusal where there are none.
    """
    config: Any = model.config
    parameters = inspect.signature(model.forward).parameters
    main = str(getattr(model, "main_input_name", "input_ids"))
    asked = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    names = list(dict.fromkeys([*([main] if main in parameters else []), *asked]))
    known = _values(config)
    refusal = ""
    for more in ([], ["decoder_input_ids"]):
        if not {*names, *more} <= known.keys():
            continue
        for values in itertools.product(*(known[name] for name in [*names, *more])):
            given = dict(zip([*names, *more], values, strict=True))
            try:
                with torch.no_grad():
                    model(**{name: value.clone() for name, value in given.items()})
            except Exception as error:  # whatever a model says to inputs that are not its own
                refusal = refusal or f"{type(error).__name__}: {error}"
                continue
            return given
    raise LookupError(refusal or f"nothing is known of {names}")


def _values(config: Any) -> Mapping[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def told(*names: str, default: int) -> int:
        parts = (config, *(v for v in vars(config).values() if hasattr(v, "model_type")))
        values = [getattr(part, name, None) for part in parts for name in names]
        number = next((v for v in values if v), default)
        return number[0] if isinstance(number, list | tuple) else int(number)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator)

    channels, size = told("num_channels", "in_channels", default=3), told("image_size", default=64)
    mel = told("num_mel_bins", "feature_size", "feature_projection_input_dim", "n_mels", default=80)
    images = [normal(channels, *each) for each in ((64, 64), (size, size), (48, 96))]
    tokens = torch.randint(4, 20, (2, 16), generator=generator)
    return {
        "pixel_values": [*images, normal(2, channels, 64, 64)],
        "input_values": [normal(4000), normal(1, 4000)],
        "input_features": [normal(64, mel), normal(mel, 64), normal(64, 320)],
        "audio_mel": [normal(64, mel)],
        "audio_mel_mask": [torch.zeros(2, 64, dtype=torch.bool)],
        "input_ids": [tokens],
        "decoder_input_ids": [tokens[:, :8]],
    }


def grouped(model: nn.Module) -> int:
    """How many grouped convolution modules it holds."""
    return sum(isinstance(m, _ConvNd) and m.groups > 1 for m in model.modules())


@dataclass
class Search:
    """What a search found: grouped convolutions by model type, and why others were not built."""

    holds: dict[str, int] = field(default_factory=dict)
    without: int = 0
    unbuilt: Counter[str] = field(default_factory=Counter)


def search(only: Iterator[str] | None = None) -> Search:
    """Build every model without memory for its weights, and look."""
    found = Search()
    for kind in only or kinds():
        try:
            with torch.device("meta"):
                model = _built(kind)
        except ImportError:
            found.unbuilt["needs a library that is not installed"] += 1
        except Exception:  # whatever a class says to a configuration of defaults
            found.unbuilt["its configuration alone does not build it"] += 1
        else:
            count = 0 if model is None else grouped(model)
            found.unbuilt["has no model of its own"] += model is None
            found.without += model is not None and not count
            found.holds.update({kind: count} if count else {})
    return found


def _built(kind: str) -> nn.Module | None:
    try:
        return build(kind, 8)
    except ImportError:
        raise
    except Exception:
        return build(kind, 1)  # numbers that have to fit each other, and do so as they are


if __name__ == "__main__":
    told = search()
    for each, number in told.holds.items():
        sys.stdout.write(f"{each}:{number} ")
    sys.stdout.write(f"\n{len(told.holds)} hold some, {told.without} none; ")
    sys.stdout.write(f"not built: {dict(told.unbuilt)}\n")
