//! Why a weight file of torch cannot be read. The texts continue "FILE is not a readable weights file: ".

use std::io;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// The disk, or the right to read.
    #[error("it cannot be read")]
    Io(#[source] io::Error),
    /// The archive or the pickle has no end, contradicts itself, or leads nowhere.
    #[error("it is cut off or damaged; download it again")]
    Damaged,
    /// A tensor is larger than what the file holds of it.
    #[error(
        "it holds less than all values of tensor {name}: it is cut off or damaged; download it again"
    )]
    Truncated {
        /// The tensor, quoted.
        name: String,
    },
    /// An entry of the archive is packed or encrypted, so its size is only a claim.
    #[error(
        "its entry {entry} is compressed or encrypted, as torch.save writes none; save it again: torch.save(torch.load(PATH), PATH)"
    )]
    Compressed {
        /// The entry, quoted.
        entry: String,
    },
    /// The pickle asks for something that no state dict needs.
    #[error(
        "its pickle has the opcode {opcode}, which torch.save does not write for a state dict; save it again: \
         torch.save(model.state_dict(), PATH)"
    )]
    Opcode {
        /// As `pickletools` calls it.
        opcode: &'static str,
    },
    /// More than any checkpoint of BLIP has.
    #[error(
        "it has more than {limit} {what}, far more than a checkpoint of BLIP; save its state dict alone: \
         torch.save(model.state_dict(), PATH)"
    )]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// How many are accepted.
        limit: u64,
    },
    /// Many tensors claim the same values.
    #[error("its tensors claim more than {limit} times the bytes that it has; download it again")]
    Shared {
        /// What is accepted.
        limit: u64,
    },
    /// Written on a machine with the other order of bytes.
    #[error("its numbers are in big-endian order, which is not read; save it on another machine")]
    BigEndian,
    /// No tensors by name.
    #[error("it holds no state dict of tensors")]
    NoStateDict,
    /// A tensor is a view of another one's values.
    #[error(
        "tensor {name} is a view with gaps, which is not read; save it with tensor.contiguous()"
    )]
    Strided {
        /// The tensor, quoted.
        name: String,
    },
}

/// A name of the file's for a message: quoted, without control characters, and not longer than a line.
pub(super) fn shown(name: &str) -> String {
    const MOST: usize = 100;
    let short: String = name.chars().take(MOST).collect();
    let more = if short.len() < name.len() { "..." } else { "" };
    format!("{:?}", short + more)
}
