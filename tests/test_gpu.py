"""What holds on a GPU, with the small models in bfloat16: against the CPU in float32, bit for bit, out of memory."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dfbench.data.annotations import Sample
from dfbench.models.base import Scorer
from dfbench.models.packed.fp8 import FIRST_CAPABILITY, row_scale, swiglu
from dfbench.models.packed.packing import Segments, attend, rotate
from dfbench.models.packed.windows import attend_windows
from dfbench.models.registry import load_prompt, load_scorer
from dfbench.paths import REPOSITORY
from dfbench.predictions.reader import read_detector
from dfbench.scoring.batching import make_plan, measure_sizes
from dfbench.scoring.loader import Preparation

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

AGENTS = ("qwen2.5", "internvl2.5", "internvl3")
ROOT = REPOSITORY


@pytest.fixture(scope="module")
def score(photo_set):
    """A function: (scorer, samples, batch size) -> float32 logits (images, 2), batches padded to one shape."""

    def run(scorer: Scorer, samples: list[Sample], batch_size: int, fixed: bool = True) -> np.ndarray:
        sizes = measure_sizes(samples, photo_set.root, scorer.prompt)
        plan = make_plan(samples, sizes, token_budget=10**6, batch_size=batch_size)
        prepared = Preparation(plan.batches, photo_set.root, scorer.prompt, shape=plan.shape if fixed else None)
        parts = []
        for index in range(len(prepared)):
            (pack,) = prepared[index].packs
            parts.append(scorer.logits({name: value.to("cuda") for name, value in pack.inputs.items()}).cpu())
        return torch.cat(parts).numpy()

    return run


@pytest.fixture(scope="module", params=AGENTS)
def checkpoint(checkpoints, request) -> Path:
    return checkpoints[request.param]


@pytest.fixture(scope="module")
def compiled(checkpoint, photo_set) -> Scorer:
    torch._dynamo.reset()  # each model and shape compiles afresh
    prompt = load_prompt(checkpoint)
    prompt.share_prefix({sample.question for sample in photo_set.samples})
    return load_scorer(prompt, device="cuda", dtype="bfloat16", compiled=True)


def test_compiled_batches_equal_float32_as_nearly_as_single_images_do(checkpoint, compiled, score, photo_set):
    samples = photo_set.samples
    exact = score(load_scorer(compiled.prompt, device="cuda", dtype="float32"), samples, 1, fixed=False)
    single = score(load_scorer(compiled.prompt, device="cuda", dtype="bfloat16"), samples, 1, fixed=False)
    packed = score(compiled, samples, 4)
    deviations = [np.abs(found - exact).mean() for found in (single, packed)]
    assert 0 < deviations[0] < 0.2 * np.abs(exact).mean()
    assert deviations[1] < 1.5 * deviations[0]


def test_float32_on_the_gpu_equals_the_cpu(checkpoint, score, photo_set, compiled):
    samples = photo_set.samples
    on_gpu = score(load_scorer(compiled.prompt, device="cuda", dtype="float32"), samples, 5, fixed=False)
    scorer = load_scorer(compiled.prompt, device="cpu", dtype="float32")
    prepared = Preparation(
        make_plan(
            samples, measure_sizes(samples, photo_set.root, scorer.prompt), token_budget=10**6, batch_size=5
        ).batches,
        photo_set.root,
        scorer.prompt,
    )
    on_cpu = torch.cat([scorer.logits(prepared[index].packs[0].inputs) for index in range(len(prepared))]).numpy()
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-4)


def test_neighbours_and_places_change_no_bit(compiled, score, photo_set):
    """The same fixed shape: every image in another batch, at another place, beside others."""
    samples = photo_set.samples
    forward = score(compiled, samples, len(samples))
    backward = score(compiled, samples[::-1], len(samples))
    np.testing.assert_array_equal(forward, backward[::-1])


def test_a_pass_never_waits_for_the_gpu(compiled, photo_set):
    """So that the next batch's work is there before this one's is done."""
    sizes = measure_sizes(photo_set.samples, photo_set.root, compiled.prompt)
    plan = make_plan(photo_set.samples, sizes, token_budget=10**6, batch_size=None)
    (pack,) = Preparation(plan.batches, photo_set.root, compiled.prompt, shape=plan.shape)[0].packs
    batch = {name: value.to("cuda") for name, value in pack.inputs.items()}
    expected = compiled.logits(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = compiled.logits(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("agent", AGENTS)
def test_processes_that_compile_for_themselves_agree(agent, checkpoints, photo_set, tmp_path):
    """Neither keeps the other's compiled code, and so neither knows what the other timed."""
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / f"{name}.csv")
        command = [sys.executable, ROOT / agent / "evaluate_logit.py", "--model_path", checkpoints[agent]]
        command += ["--dataset_path", photo_set.messages, "--image_root", photo_set.root, "--batch_size", "4"]
        subprocess.run(
            [*command, "--workers", "2", "--output_csv", files[-1]],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / name), "HF_HUB_OFFLINE": "1"},
            check=True,
        )
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("prompts", [1, 24])
def test_a_single_query_is_answered_alike_every_time(prompts):
    """As in the last layer. torch's fused attention is not, for one query and 1,329 keys."""
    torch.manual_seed(0)
    query = torch.randn(prompts, 32, 128, device="cuda", dtype=torch.bfloat16)
    key, value = torch.randn(2, prompts * 1329, 8, 128, device="cuda", dtype=torch.bfloat16)
    ends, keys = Segments.of([1] * prompts).to("cuda"), Segments.of([1329] * prompts).to("cuda")
    first = attend(query, key, value, ends, keys, causal=True)
    assert all(torch.equal(attend(query, key, value, ends, keys, causal=True), first) for _ in range(200))


@pytest.mark.parametrize("head_dim", [32, 80, 128])
def test_the_window_kernel_equals_rotation_and_attention(head_dim):
    torch.manual_seed(0)
    lengths = [64, 16, 4, 1, 64]
    segments = Segments.of(lengths, size=7, max_seqlen=64).to("cuda")
    tokens = sum(lengths)
    qkv = torch.randn(tokens + 5, 3, 4, head_dim, device="cuda")
    angles = torch.randn(tokens + 5, head_dim // 2, device="cuda").repeat(1, 2)
    query, key, value = qkv.bfloat16().float().unbind(1)
    query, key = (rotate(part, angles.cos(), angles.sin()) for part in (query, key))
    exact = attend(query, key, value, segments, segments, causal=False)[:tokens]
    found = attend_windows(qkv.bfloat16(), angles.cos(), angles.sin(), segments.cu_seqlens)[:tokens]
    assert (found.float() - exact).abs().max() < 0.05


@pytest.mark.parametrize("width", [48, 3424, 18944])
def test_the_8_bit_kernel_equals_activation_and_scaling(width):
    if torch.cuda.get_device_capability() < FIRST_CAPABILITY:
        pytest.skip("this GPU has no 8-bit numbers")
    torch.manual_seed(0)
    gate_up = torch.randn(300, 2 * width, device="cuda", dtype=torch.bfloat16) * 3
    gate_up[7] = 0
    found, scale = swiglu(gate_up)
    gate, up = gate_up.split(width, dim=-1)
    product = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(scale, row_scale(product), rtol=2**-8, atol=0)  # a last bit of bfloat16
    allowed = product.float().abs() * (2**-4 + 2**-7) + scale * 2**-9
    assert ((found.float() * scale - product.float()).abs() <= allowed).all()


def test_8_bit_products_stay_near(compiled, checkpoint, score, photo_set):
    if torch.cuda.get_device_capability() < FIRST_CAPABILITY:
        pytest.skip("this GPU has no 8-bit products")
    scorer = load_scorer(compiled.prompt, device="cuda", dtype="bfloat16", fp8=True)
    exact = score(compiled, photo_set.samples, 4)
    found = score(scorer, photo_set.samples, 4, fixed=False)
    assert 0 < np.abs(found - exact).max() < 0.3 * np.abs(exact).max()


def held_memory() -> int:
    """Bytes of the GPU that live tensors of this process hold."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def test_memory_that_runs_out_halves_the_batches(evaluate_anywhere, checkpoints, draw, write_rows, tmp_path, caplog):
    """The whole run, once with all the card's memory and once with too little for its batches."""
    samples = [Sample(f"DFBench/Kolors/{number}.jpg", "B", "<image>Real?") for number in range(16)]
    (tmp_path / "DFBench" / "Kolors").mkdir(parents=True)
    for number, sample in enumerate(samples):
        draw(seed=number, width=1024, height=1024).save(tmp_path / sample.image)
    rows = write_rows(tmp_path / "test.json", samples)
    usual = ["--model_path", checkpoints["qwen2.5"], "--dataset_path", rows, "--image_root", tmp_path, "--eager"]
    usual += ["--workers", 0, "--quiet", "--output_csv"]
    before = held_memory()
    torch.cuda.reset_peak_memory_stats()
    assert evaluate_anywhere(*usual, tmp_path / "all.csv", agent="qwen2.5").status == 0
    needed = torch.cuda.max_memory_allocated() - before
    allowed = held_memory() + 0.5 * needed
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        finished = evaluate_anywhere(*usual, tmp_path / "less.csv", agent="qwen2.5")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert finished.status == 0, finished.err
    found, expected = (read_detector(tmp_path / name).frame for name in ("less.csv", "all.csv"))
    assert found["image"].tolist() == expected["image"].tolist()
    np.testing.assert_allclose(found["prob_A"], expected["prob_A"], atol=0.05)
    assert "out of GPU memory: going on with batches of 1/" in caplog.text
