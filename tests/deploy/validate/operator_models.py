"""The models whose files get a wrong operator: joins, attention, a detector, whole numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.deploy.validate.corruption_models import MODELS as SITE_MODELS
from tests.deploy.validate.corruption_models import SPLIT, CorruptedModel


class _Double(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class UNet(nn.Module):
    """Two levels down and up again, by grouped and plain transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _Double(3, 8), _Double(8, 12, 2), _Double(12, 16, 4)
        self.up2 = nn.ConvTranspose2d(16, 12, 2, stride=2, groups=2)
        self.join2 = _Double(24, 12, 2)
        self.up1 = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.join1 = _Double(16, 8, 2)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.avg_pool2d(b, 3, 2, padding=1))
        y = self.join2(torch.cat([b, self.up2(c)], 1))
        y = self.join1(torch.cat([self.up1(y), a], 1))
        return torch.sigmoid(self.out(y))


class Hybrid(nn.Module):
    """A convolutional stem and one block of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.bn = nn.BatchNorm2d(12)
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.wide, self.narrow = nn.Linear(12, 20), nn.Linear(20, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn(self.depthwise(F.gelu(self.stem(x)))))
        t = y.flatten(2).transpose(1, 2)
        n, length, c = t.shape
        qkv = self.qkv(self.norm1(t)).reshape(n, length, 3, 3, 4)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        a = F.scaled_dot_product_attention(q, k, v)
        t = t + self.proj(a.transpose(1, 2).reshape(n, length, c))
        t = t + self.narrow(F.gelu(self.wide(self.norm2(t))))
        return F.log_softmax(self.head(t.mean(1)), -1)


class Detector(nn.Module):
    """Boxes, scores and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 10, 3, stride=2, padding=1),
            nn.BatchNorm2d(10),
            nn.LeakyReLU(0.1),
            nn.Conv2d(10, 12, 3, padding=1, groups=2),
            nn.BatchNorm2d(12),
            nn.Hardswish(),
        )
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.classes, self.boxes = nn.Conv2d(24, 4, 1), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.body(x)
        y = torch.cat([y, self.pool(y)], 1)
        y = y + F.pad(y, (1, 0, 1, 0))[:, :, :-1, :-1]
        c = self.classes(y).flatten(2).transpose(1, 2)
        xy, wh = self.boxes(y).flatten(2).transpose(1, 2).split(2, -1)
        xy, wh = torch.sigmoid(xy) * 32, torch.exp(wh.clamp(-4, 4)) * 8
        boxes = torch.cat([xy - wh / 2, xy + wh / 2], -1)
        scores = torch.softmax(c, -1)
        return boxes, scores, scores.argmax(-1)


class Tokens(nn.Module):
    """Whole numbers in, and some out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(23, 12)
        self.conv = nn.Conv1d(12, 12, 3, padding=1, groups=3)
        self.norm = nn.GroupNorm(3, 12)
        self.head = nn.Linear(12, 9)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.table(ids).transpose(1, 2)
        y = F.elu(self.norm(self.conv(y))) + y
        y = F.interpolate(y, scale_factor=2, mode="linear")
        scores = self.head(torch.tanh(y.transpose(1, 2)))
        values, places = scores.topk(3, -1)
        return values, places, scores.argmax(-1)


OPERATOR_MODELS = {
    model.id: model
    for model in (
        CorruptedModel("unet", UNet, lambda: (torch.randn(2, 3, 12, 8),), SPLIT, 50),
        CorruptedModel("hybrid", Hybrid, lambda: (torch.randn(2, 3, 10, 8),), SPLIT, 50),
        CorruptedModel("detector", Detector, lambda: (torch.randn(2, 3, 12, 10),), SPLIT, 50),
        CorruptedModel("tokens", Tokens, lambda: (torch.randint(0, 23, (2, 11)),), SPLIT, 50),
        SITE_MODELS["resnext-blind"],
    )
}
