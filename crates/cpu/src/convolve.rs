//! The convolution op onto [`crate::conv`]: geometry only. The kernel reads its operands row-major; others are copied.

use crate::conv::{self, Axis, Conv};
use crate::isa::isa;
use crate::tape;
use lapis_core::buffer::Tensor;
use lapis_core::error::Result;
use lapis_core::ops::Convolution;

/// `conv`: inputs (batch, axes..., channels) and (outputs, axes..., channels / groups).
pub(crate) fn convolution(op: &Convolution, inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    let (input, weight) = (tape::contiguous(&inputs[0])?, tape::contiguous(&inputs[1])?);
    let mut axes = [Axis::UNIT; 3];
    for (i, axis) in axes.iter_mut().enumerate().take(op.stride.len()) {
        *axis = Axis {
            input: input.shape[i + 1],
            kernel: weight.shape[i + 1],
            stride: op.stride[i],
            padding: (op.padding_lo[i], op.padding_hi[i]),
            kernel_dilation: op.kernel_dilation[i],
            input_dilation: op.input_dilation[i],
        };
    }
    let geometry = Conv {
        batch: input.shape[0],
        axes,
        channels: input.shape[input.shape.len() - 1],
        outputs: weight.shape[0],
        groups: op.groups,
        flip: op.flip,
    };
    // SAFETY: the tensors are row-major, of one real floating dtype and of the sizes that the op's inference checked;
    // the output belongs to this call; `isa()` is available.
    unsafe { conv::conv(isa(), out.dtype, &geometry, input.ptr(), weight.ptr(), out.ptr()) };
    Ok(())
}
