"""`python -m qjax.io SOURCE TARGET --format int4_g128`: a float checkpoint rounded to nearest, without holding it."""

from __future__ import annotations

import argparse

from qjax.io.converting import SHARD, convert


def main() -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(prog="python -m qjax.io", description=__doc__)
    parser.add_argument("source", help="a folder with config.json and safetensors, or a hub id")
    parser.add_argument("target", help="the folder to write")
    parser.add_argument("--format", required=True, help="of the layers' kernels, such as int4_g128 or fp8_e4m3")
    parser.add_argument("--to", default="compressed-tensors", help="compressed-tensors, gptq or awq")
    parser.add_argument("--layout", help="where the container knows several")
    parser.add_argument("--shard", type=int, default=SHARD, help="bytes of float tensors whose results share a file")
    args = parser.parse_args()
    convert(args.source, args.target, args.format, to=args.to, layout=args.layout, shard=args.shard)


if __name__ == "__main__":
    main()
