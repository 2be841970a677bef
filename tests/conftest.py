"""Eight simulated devices, shapes and types checked at run time, and nothing implicit.

Compiling is most of what these tests do: LLVM does not optimise the small programs they run, and
where XLA can still emit their fusions the older way, before 0.11, that takes half the time.
"""

import os
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else "")
)

from jaxtyping import install_import_hook

install_import_hook("clir_jax", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Scripts of `make test-interop`, for environments that hold other libraries.
collect_ignore = ["interop"]
