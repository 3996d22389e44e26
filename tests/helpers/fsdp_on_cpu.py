"""Run a script with FSDP on CPU processes, for the tests: accelerate allows it on accelerators only.

    accelerate launch --config_file fsdp.yaml tests/fsdp_on_cpu.py scripts/train.py --use_cpu true

PyTorch's FSDP itself works over gloo: all that is changed is what accelerate says of how it is distributed.
"""

import runpy
import sys

from accelerate import state
from accelerate.utils import DistributedType


plain_init = state.AcceleratorState.__init__


def init_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    plain_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)
    if "fsdp_plugin" in vars(self):
        self.distributed_type = DistributedType.FSDP


if __name__ == "__main__":
    state.AcceleratorState.__init__ = init_with_fsdp
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
