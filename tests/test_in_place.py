"""A hidden layer held once: the numbers of the MLP as it is, half of its memory, and nothing written over that somebody reads."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import tokred
from tokred.in_place import run_mlp
from tokred.memory import peak_memory
from tokred.transformer import MLP

B, N, C, HIDDEN = 2, 64, 32, 512


class Seen(TorchDispatchMode):
    """The names of the operations that run within."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))

    @property
    def gelus(self) -> list[str]:
        return [name for name in self.names if "gelu" in name]


class Again(nn.Module):
    """Reads the hidden layer after GELU did."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(C, HIDDEN), nn.Linear(HIDDEN, C)

    def forward(self, x):
        hidden = self.fc1(x)
        return self.fc2(F.gelu(hidden) * hidden)


class Twice(nn.Module):
    def forward(self, x):
        return F.gelu(x) + x


def of_timm() -> nn.Module:
    return timm.layers.Mlp(C, HIDDEN)


def of_timm_with_tanh() -> nn.Module:
    return timm.layers.Mlp(C, HIDDEN, act_layer=timm.layers.GELUTanh)


def of_own() -> nn.Module:
    return MLP(C, HIDDEN)


@pytest.fixture(params=[of_own, of_timm, of_timm_with_tanh], ids=["own", "timm", "tanh"])
def mlp(request) -> nn.Module:
    torch.manual_seed(0)
    return request.param().eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_the_numbers_are_those_of_the_module(mlp, dtype, off):
    mlp, x = mlp.to(dtype), torch.randn(B, N, C, dtype=dtype)
    before = x.clone()
    with off(), Seen() as seen:
        found = run_mlp(mlp, x)
    with off():
        assert torch.equal(found, mlp(x))
    assert seen.gelus == ["gelu_.default"]
    assert torch.equal(x, before)


def test_the_hidden_layer_is_held_once():
    mlp, x = of_own().eval(), torch.randn(B, N, C)
    of_hidden = B * N * HIDDEN * 4 / 2**20
    with torch.inference_mode():
        for _ in range(2):
            ours, theirs = (peak_memory(lambda f=f: f(x), "cpu").held_mib for f in (lambda x: run_mlp(mlp, x), mlp))
    assert theirs - ours == pytest.approx(of_hidden - B * N * C * 4 / 2**20, abs=0.01)  # then the output is the most


def test_a_gradient_gets_the_hidden_layer_it_needs(mlp):
    x = torch.randn(B, N, C, requires_grad=True)
    run_mlp(mlp, x).sum().backward()
    found, x.grad = x.grad, None
    mlp(x).sum().backward()
    assert torch.equal(found, x.grad)


def test_a_hook_keeps_what_it_saw():
    mlp, x, kept = of_timm().eval(), torch.randn(B, N, C), []
    handle = mlp.fc1.register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.inference_mode():
        run_mlp(mlp, x)
        handle.remove()
        assert torch.equal(kept[0], mlp.fc1(x))
        run_mlp(mlp, x)
    assert len(kept) == 1


def test_a_hook_sees_the_same_input_afterwards():
    mlp, x, kept = of_timm().eval(), torch.randn(B, N, C), []
    mlp.act.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    with torch.inference_mode():
        run_mlp(mlp, x)
        assert torch.equal(kept[0], mlp.fc1(x))


@pytest.mark.parametrize("of_all", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_a_hook_on_all_modules_keeps_what_it_saw(of_all):
    mlp, x, kept = of_timm().eval(), torch.randn(B, N, C), []
    handle = getattr(nn.modules.module, of_all)(lambda module, *args: kept.append((module, args[-1])))
    try:
        with torch.inference_mode():
            run_mlp(mlp, x)
    finally:
        handle.remove()
    with torch.inference_mode():
        hidden = mlp.fc1(x)
    seen = {"register_module_forward_hook": mlp.fc1, "register_module_forward_pre_hook": mlp.act}[of_all]
    (found,) = (value if isinstance(value, torch.Tensor) else value[0] for module, value in kept if module is seen)
    assert torch.equal(found, hidden)


@pytest.mark.parametrize(
    "of_parts", [Again, lambda: timm.layers.Mlp(C, HIDDEN, act_layer=Twice)], ids=["mlp", "activation"]
)
def test_what_may_be_read_again_is_not_written_over(of_parts):
    torch.manual_seed(0)
    mlp, x = of_parts().eval(), torch.randn(B, N, C)
    with torch.inference_mode(), Seen() as seen:
        found = run_mlp(mlp, x)
    with torch.inference_mode():
        assert torch.equal(found, mlp(x))
    assert seen.gelus == ["gelu.default"]


def test_the_input_is_not_written_over_where_gelu_reads_it():
    mlp, x = of_timm().eval(), torch.randn(B, N, HIDDEN)
    mlp.fc1 = nn.Identity()
    before = x.clone()
    with torch.inference_mode():
        assert torch.equal(run_mlp(mlp, x), mlp(before))
    assert torch.equal(x, before)


def test_a_tensor_without_values_is_run_as_it_is(recwarn):
    with FakeTensorMode(), torch.inference_mode(), Seen() as seen:
        run_mlp(of_timm().eval(), torch.randn(B, N, C))
    assert seen.gelus == ["gelu.default"]
    assert not recwarn


def test_a_graph_is_of_operations_that_write_over_nothing(mlp):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = mlp

        def forward(self, x):
            return run_mlp(self.mlp, x)

    x = torch.randn(B, N, C)
    with torch.no_grad():
        captured = torch.export.export(Around(), (x,))
        assert torch.equal(captured.module()(x), mlp(x))
    assert [str(node.target) for node in captured.graph.nodes if "gelu" in str(node.target)] == ["aten.gelu.default"]


@pytest.mark.parametrize(
    "name", ["mini_cls", "mini_mean", "timm/vit_tiny_patch16_224", "hf/videomae_base", "hf/vivit_base"]
)
def test_every_backbone_runs_its_mlps_so(name):
    sizes = {}
    if name.startswith("hf/"):
        pytest.importorskip("transformers")
        sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48}
        sizes |= {"image_size": 32, "num_frames": 4, "hidden_act": "gelu"}  # ViViT's own is made of products
    backbone = tokred.create_backbone(name, **sizes)
    x = torch.randn(1, *backbone.sample_shape)
    with torch.inference_mode(), Seen() as seen:
        found = backbone(x)
    assert seen.gelus == ["gelu_.default"] * backbone.depth
    assert torch.equal(found, backbone(x).detach())  # with gradients the hidden layers are kept
