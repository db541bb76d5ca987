"""A finished run made of plausible numbers, so that the page can be built without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments import store
from qjax.evaluate import verdict

ROLES = ("attn/q", "attn/k", "attn/v", "attn/o", "ffn/gate", "ffn/up", "ffn/down")
BITS = {"int4_g64": 4.25, "int3_g64_affine": 3.30, "mxfp4": 4.25, "nvfp4": 4.5, "int8": 8.03}
ERROR = {"int4_g64": 0.11, "int3_g64_affine": 0.20, "mxfp4": 0.13, "nvfp4": 0.095, "int8": 0.007}


def judged(better, worse, ratios, wins):
    matrices = [{"wins": wins, "losses": 210 - wins, "ties": 0, "p": 0.5}] * 3
    outcome = verdict(ratios)._asdict()
    return {
        "better": better,
        "worse": worse,
        **outcome,
        "log_ratios": ratios,
        "bpw_difference": 0.0,
        "matrices": matrices,
    }


def fake_run(root: Path, study: str = "quickstart", replicates: int = 1, layers: int = 30, width: int = 576) -> Path:
    """Write one run folder and return it."""
    rng = np.random.default_rng(len(study) + replicates)
    names = [("float", "float", "float")]
    names += [(f"{m} {f}", m, f) for m in ("rtn", "gptq") for f in list(BITS)[:4]]
    names += [("w8a8 int8 token", "w8a8", "int8"), ("w8a8 int8 tensor", "w8a8", "int8")]
    folder = root / study / "0123456789ab"
    rows = []
    for seed in range(replicates):
        base = 14.2 + 0.1 * rng.normal()
        for name, method, fmt in names:
            scale = {"gptq": 0.65, "rtn": 1.0, "w8a8": 1.0}.get(method, 0.0)
            error = scale * ERROR.get(fmt, 0.0) + (0.12 if "tensor" in name else 0.0)
            cost = 22 * error**2 * (1 + 0.05 * rng.normal())
            model_bits = 32 if method == "float" else (106.2 * BITS[fmt] + 28.4 * 32) / 134.6
            metrics = {
                "name": name, "recipe": f"{method}(format={fmt!r})" if method != "float" else "float", "format": fmt,
                "bpw": BITS.get(fmt, 32.0), "bpw_model": model_bits, "bytes": int(134.6e6 * model_bits / 8),
                "perplexity": float(base * np.exp(cost)), "kl_mean": float(cost * 0.9), "kl_p99": float(cost * 7),
                "top1_flip": float(min(0.6, 1.1 * error)), "seed": seed,
            }  # fmt: skip
            leaves = [
                {
                    "path": f"layers/{i}/{role}", "method": method, "format": fmt, "bits": BITS[fmt],
                    "tokens": 8192 if method == "gptq" else None,
                    "error_before": float(ERROR[fmt] * (1 + 0.3 * np.sin(i + j))), "error_after": float(max(1e-3,
                    error) * (1 + 0.3 * np.sin(i + j)) * (1.6 if role == "ffn/down" else 1)), "output_error":
                    float(max(1e-3, error) * (1 + 0.3 * np.sin(i + j)) * (1.6 if role == "ffn/down" else 1)),
                    "warnings": ["12 dead columns"] if (i, role) == (1, "ffn/down") else [],
                }
                for i in range(layers) for j, role in enumerate(ROLES)
            ] if method != "float" else []  # fmt: skip
            prompts = ("The three primary colors are", "A function in Python is", "The capital of France is")
            samples = [
                {"prompt": p, "text": f" red, blue & yellow <said {name}>, and the cat sat on the mat."}
                for p in prompts
            ]
            entry = {
                "metrics": metrics,
                "leaves": leaves,
                "samples": samples
                if name in ("float", "rtn int3_g64_affine", "gptq int3_g64_affine") and not seed
                else [],
            }
            if not seed:
                spread = 3000 if method == "float" else 30
                entry["inputs"] = {
                    f"layers/{i}/{role}": {
                        "largest": spread * (1 + i),
                        "median": 0.5 + ("o" in role),
                        "crest": 3.0 + error * i,
                    }
                    for i in range(layers)
                    for role in ROLES
                }
            store.write_json(folder / "rows" / f"{seed}-{store.slug(name)}.json", entry)
            store.append_line(
                folder / "timing.jsonl",
                {"row": name, "seed": seed, "what": "evaluate", "seconds": 12.5, "process_peak_mib": 2900.0},
            )
            if method == "gptq":
                store.append_line(
                    folder / "timing.jsonl",
                    {"row": name, "seed": seed, "what": "quantize", "seconds": 48.1, "process_peak_mib": 3100.0},
                )
            rows.append(metrics)
    missing = {"better": "mxfp4", "worse": "rtn int4_g64", "verdict": "not judged", "reason": "no row 'mxfp4'"}
    good = judged("gptq int3_g64_affine", "rtn int3_g64_affine", [-0.41, -0.43, -0.42], 208)
    open_question = judged("rtn mxfp4", "rtn int4_g64", [0.1, 0.05, 0.2], 100)
    together = judged("rank correlation of crest", "output error", [-0.9, -0.8, -0.85], 0) | {"matrices": []}
    del together["bpw_difference"]
    together |= {"says": "crest grows with output error"}
    claims = [good, missing, open_question, together] if replicates > 1 else []
    outliers = {}
    for i in range(layers):
        shared = rng.lognormal(0, 0.5, width).astype(np.float32)
        shared[min(507, width - 1)] *= 60 if i > layers // 3 else 1
        for role in ROLES:
            x = shared if role not in ("attn/o", "ffn/down") else rng.lognormal(-1, 0.8, width).astype(np.float32)
            if role == "ffn/down" and i == 11:
                x[7] = 3000
            outliers[f"input/layers/{i}/{role}"] = x
            rms = 0.1
            outliers[f"weight/layers/{i}/{role}"] = np.array(
                [rms * (6 + 4 * rng.random()), rms, 3 + 4 * rng.random()], np.float32
            )
    store.write_arrays(folder / "outliers.npz", outliers)
    store.write_json(
        folder / "config.json",
        {
            "study": study,
            "model": None,
            "replicates": replicates,
            "seed": 0,
            "relations": [["crest", "output error"], ["crest", "perplexity"]],
        },
    )
    provenance = {
        "study": study, "seed": 0, "replicates": replicates,
        "data": {"name": "pydoc_data.topics (python 3.11.2)", "sha256": "71f2ff5d" * 8},
        "model": {"name": "SmolLM2-135M-Instruct", "sha256": "ab" * 32},
        "protocol": "32 windows of the report part: non-overlapping windows of 512 tokens, no BOS",
        "source_sha256": "cd" * 32, "versions": {"python": "3.11.2", "jax": "0.10.2"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1}, "machine": {"system": "Linux", "processor": "x86_64"},
    }  # fmt: skip
    store.write_json(folder / "provenance.json", provenance)
    (folder / "about.txt").write_text(
        "SmolLM2-135M several ways.\n\nExpected: GPTQ closes most of the gap at three bits.\n"
    )
    store.write_json(folder / "metrics.json", {"rows": rows, "claims": claims})
    return folder
