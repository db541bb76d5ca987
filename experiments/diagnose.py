"""Where a model's outliers are: `python -m experiments.diagnose [--model=...] [--tokens=512] [--prefix 1]`.

For each layer: the three largest magnitudes and the median of the residual stream behind it, its massive activations
(catalogue T4) and where they lie; of what enters the down projection, the outlier tokens, the crest factor, the median
of the channels' effective levels under one 8-bit scale (catalogue T14) and the share that INT8 rounds to zero with a
scale a token (catalogue T15). Then the outlier features (catalogue T1) and the super weights (catalogue T6, I9). With
`--prefix`, all this behind the keys and values of these tokens.
"""

from __future__ import annotations

import argparse

import jax.numpy as jnp
import numpy as np

import qjax
from experiments import subject
from experiments.places import activations
from qjax import data, diagnose

SITES = ("residual/ffn", "ffn/product", "attn_norm/output")


def table(hidden: np.ndarray, product: np.ndarray) -> list[str]:
    """A line for each layer, of one window: hidden [layers, tokens, width], product [layers, tokens, hidden]."""
    lines = [
        f"{'layer':>5} {'largest':>9} {'second':>8} {'third':>8} {'median':>7} {'massive':>7}  "
        f"{'at (token, channel)':<26}{'outlier tokens':>14} {'crest':>7} {'levels':>7} {'zeros':>8}"
    ]
    for layer, (h, x) in enumerate(zip(hidden, product, strict=True)):
        sizes = np.sort(np.abs(h), axis=None)
        places = [tuple(map(int, place)) for place in np.argwhere(diagnose.massive_activations(jnp.asarray(h)))]
        rounded = qjax.dequantize(qjax.quantize(jnp.asarray(x), "int8_narrow_f32", axis=-1))
        lines.append(
            f"{layer:>5} {sizes[-1]:>9,.0f} {sizes[-2]:>8,.0f} {sizes[-3]:>8,.0f} {np.median(sizes):>7.2f} "
            f"{len(places):>7}  {', '.join(map(str, places[:2])):<26}"
            f"{int(diagnose.outlier_tokens(jnp.asarray(x)).sum()):>14} "
            f"{diagnose.crest_factor(jnp.asarray(x)).item():>7.0f} "
            f"{np.median(diagnose.effective_levels(jnp.asarray(np.abs(x).max(0)))):>7.2f} "
            f"{100 * diagnose.quantization_kernel(rounded).item():>6.2f} %"
        )
    return lines


def main() -> None:
    """Print the table for one window of the development part."""
    parser = argparse.ArgumentParser(prog="python -m experiments.diagnose", description="Where a model's outliers are.")
    parser.add_argument("--model", help="as in a config; SmolLM2-135M if left out")
    parser.add_argument("--data", default="topics", help="as in a config")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--prefix", type=int, nargs="+", help="ids of tokens that every window attends to first")
    args = parser.parse_args()
    seen = subject.load(args.model)
    text = data.load_text(args.data)
    part = np.asarray(subject.tokenize(seen, data.split(text.text).development))
    window = jnp.asarray(data.windows(part, args.tokens, 1))
    params = seen.params
    if args.prefix:
        params, _ = qjax.run(qjax.transforms.prefix(args.prefix), seen.model, params, [window])
    sites = {name: values[:, 0] for name, values in activations(seen.model, params, window, SITES).items()}
    print("\n".join(table(sites["residual/ffn"], sites["ffn/product"])))
    features = np.flatnonzero(diagnose.outlier_features(jnp.asarray(sites["attn_norm/output"])))
    print(f"\noutlier features of what the attention projections read: {len(features)}: {features.tolist()}")
    down = jnp.stack([seen.params["layers"][str(i)]["ffn"]["down"] for i in range(len(sites["ffn/product"]))])
    found = diagnose.super_weights(jnp.asarray(sites["ffn/product"]), down)
    for i in np.flatnonzero(found.found):
        print(
            f"layers/{i}/ffn/down puts out {found.output[i]:,.0f} in channel {found.column[i]} at token "
            f"{found.token[i]}; its weight [{found.row[i]}, {found.column[i]}] makes {100 * found.share[i]:.0f} % of it"
        )


if __name__ == "__main__":
    main()
