"""Low-bit matmul kernels, each beside its reference. This folder is `qjax.kernels`; import it by that name."""

if __name__ == "kernels":
    raise ImportError("import qjax.kernels, not kernels: the folder is part of the qjax package")
