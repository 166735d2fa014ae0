//! Why a PyTorch weight file cannot be read. The messages are shown after "FILE is not a readable weights file: ".

use std::io;

/// What is wrong with a weight file.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// The operating system could not read the file.
    #[error("it cannot be read")]
    Io(#[source] io::Error),
    /// The archive or the pickle is truncated or inconsistent, or refers to something that does not exist.
    #[error("it is cut off or damaged; download it again")]
    Damaged,
    /// A tensor has more values than the file holds for it.
    #[error(
        "it does not hold all values of tensor {name}: it is cut off or damaged; download it again"
    )]
    Truncated {
        /// The name of the tensor, quoted.
        name: String,
    },
    /// An entry of the archive is compressed or encrypted, so its size cannot be trusted.
    #[error(
        "its entry {entry} is compressed or encrypted, which torch.save never writes; save it again: torch.save(torch.load(PATH), PATH)"
    )]
    Compressed {
        /// The name of the entry, quoted.
        entry: String,
    },
    /// The pickle contains an opcode that no state dict needs.
    #[error(
        "its pickle has the opcode {opcode}, which torch.save does not write for a state dict; save it again: \
         torch.save(model.state_dict(), PATH)"
    )]
    Opcode {
        /// The name of the opcode in `pickletools`.
        opcode: &'static str,
    },
    /// A count or size is far larger than in any BLIP checkpoint.
    #[error(
        "it has more than {limit} {what}, far more than any BLIP checkpoint; save the state dict alone: \
         torch.save(model.state_dict(), PATH)"
    )]
    TooLarge {
        /// What is counted, in the plural.
        what: &'static str,
        /// Maximum number that is accepted.
        limit: u64,
    },
    /// Many tensors share the same values, so reading all of them would take too much memory.
    #[error("its tensors claim more than {limit} times the bytes of the file; download it again")]
    Shared {
        /// Accepted ratio of tensor bytes to bytes of the file.
        limit: u64,
    },
    /// The file was written on a machine with big-endian byte order.
    #[error(
        "its numbers are in big-endian order, which is not supported; save it on a little-endian machine"
    )]
    BigEndian,
    /// The file holds no dictionary of named tensors.
    #[error("it holds no state dict of tensors")]
    NoStateDict,
    /// A tensor is a view whose values have gaps.
    #[error(
        "tensor {name} is a view with gaps, which is not supported; save it with tensor.contiguous()"
    )]
    Strided {
        /// The name of the tensor, quoted.
        name: String,
    },
}

/// Formats a name from the file for a message: quoted, without control characters, at most 100 characters.
pub(super) fn shown(name: &str) -> String {
    const MOST: usize = 100;
    let short: String = name.chars().take(MOST).collect();
    let more = if short.len() < name.len() { "..." } else { "" };
    format!("{:?}", short + more)
}
