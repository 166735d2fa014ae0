//! Turns the opcodes of a pickle into the values that they describe. Nothing is executed: a call becomes a value like
//! any other.
//!
//! Values are flat: a container is an index into a table. So a value that is referred to again is not copied, nested
//! values are neither walked nor dropped by recursion, and memory grows by at most a few dozen bytes per opcode. The
//! numbers of opcodes, values on the stack and marks are bounded, too.
//!
//! Source: `pickletools.py` of `CPython`, and what `torch.save` (protocol 2) writes for a state dict with its metadata.

use std::collections::HashMap;

use super::TorchError;

/// Maximum number of opcodes. 1,000 tensors take about 35,000.
const MAX_OPCODES: u64 = 1 << 20;
/// Maximum number of values on the stack. Python's pickler writes dictionaries in batches of 1,000 entries, that is,
/// 2,000 values.
const MAX_STACK: u64 = 1 << 14;
/// Maximum number of open marks. A tuple or batch has an open mark until it is complete. A tensor needs three open
/// marks.
const MAX_MARKS: u64 = 1 << 10;

/// A value that the pickle describes. Texts borrow the bytes of the pickle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum PickleValue<'a> {
    Int(i64),
    Text(&'a str),
    /// A class or function: its module and name, separated by a line break.
    Global(&'a str),
    Tuple(Items),
    Dict(DictId),
    /// A call. It has two items: the callable and its arguments.
    Call(Items),
    /// A reference to the values of a tensor. It has one item: the id by which `torch` finds the values.
    Persistent(Items),
    /// Anything that no tensor needs: None, booleans, floats, lists, large integers.
    Other,
}

/// A run of values in [`Pickle::items`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Items {
    start: u32,
    count: u32,
}

/// Index of a dictionary in the table of dictionaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DictId(u32);

/// The values of a pickle that has been read.
#[derive(Debug, Default)]
pub(super) struct Pickle<'a> {
    /// The value of the whole pickle.
    root: Option<PickleValue<'a>>,
    items: Vec<PickleValue<'a>>,
    /// Keys and values of each dictionary, in the order in which they were set; a key may occur more than once.
    dicts: Vec<Vec<(PickleValue<'a>, PickleValue<'a>)>>,
}

impl<'a> Pickle<'a> {
    /// Returns the entries if the whole pickle is one dictionary, otherwise `None`.
    pub(super) fn root_entries(&self) -> Option<&[(PickleValue<'a>, PickleValue<'a>)]> {
        match self.root {
            Some(PickleValue::Dict(DictId(index))) => Some(&self.dicts[index as usize]),
            _ => None,
        }
    }

    /// Returns the values of a tuple, a call or a persistent id.
    pub(super) fn items(&self, Items { start, count }: Items) -> &[PickleValue<'a>] {
        &self.items[start as usize..][..count as usize]
    }

    fn keep(&mut self, values: &[PickleValue<'a>]) -> Items {
        let items = Items { start: self.items.len() as u32, count: values.len() as u32 };
        self.items.extend_from_slice(values);
        items
    }

    fn new_dict(&mut self) -> PickleValue<'a> {
        self.dicts.push(Vec::new());
        PickleValue::Dict(DictId(self.dicts.len() as u32 - 1))
    }
}

/// Reads a pickle up to its STOP opcode.
///
/// # Errors
/// `Opcode`, `TooLarge`, `Damaged`.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle<'_>, TorchError> {
    let mut reader = PickleReader { rest: bytes, ..PickleReader::default() };
    for _ in 0..MAX_OPCODES {
        if reader.step()? {
            reader.pickle.root = Some(reader.pop()?);
            return Ok(reader.pickle);
        }
    }
    Err(TorchError::TooLarge { what: "opcodes in its pickle", limit: MAX_OPCODES })
}

#[derive(Default)]
struct PickleReader<'a> {
    rest: &'a [u8],
    stack: Vec<PickleValue<'a>>,
    /// Stack heights of the open marks; values below the last mark must not be popped.
    marks: Vec<usize>,
    memo: HashMap<u32, PickleValue<'a>>,
    pickle: Pickle<'a>,
}

impl<'a> PickleReader<'a> {
    /// Reads and applies one opcode. Returns true if it was the last.
    fn step(&mut self) -> Result<bool, TorchError> {
        match self.byte()? {
            // PROTO
            0x80 => {
                self.byte()?;
            }
            // STOP
            b'.' => return Ok(true),
            // MARK
            b'(' => self.mark()?,
            // NONE, NEWTRUE, NEWFALSE, EMPTY_LIST
            b'N' | 0x88 | 0x89 | b']' => self.push(PickleValue::Other)?,
            // BINFLOAT
            b'G' => {
                self.take(8)?;
                self.push(PickleValue::Other)?;
            }
            // BININT, BININT1, BININT2, LONG1
            b'J' => self.int(4)?,
            b'K' => self.unsigned(1)?,
            b'M' => self.unsigned(2)?,
            0x8a => {
                let bytes = self.byte()?;
                self.int(bytes.into())?;
            }
            // BINUNICODE, GLOBAL
            b'X' => self.text()?,
            b'c' => self.global()?,
            // BINPUT, LONG_BINPUT, BINGET, LONG_BINGET
            b'q' => self.put(1)?,
            b'r' => self.put(4)?,
            b'h' => self.get(1)?,
            b'j' => self.get(4)?,
            opcode => self.combine(opcode)?,
        }
        Ok(false)
    }

    /// Applies an opcode that combines values into a new value: a tuple, a dictionary, a list or an object.
    fn combine(&mut self, opcode: u8) -> Result<(), TorchError> {
        match opcode {
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.tuple(0)?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let count = self.since_mark()?;
                self.tuple(count)?;
            }
            // EMPTY_DICT
            b'}' => {
                let dict = self.pickle.new_dict();
                self.push(dict)?;
            }
            // SETITEM, SETITEMS
            b's' => self.set_items(2)?,
            b'u' => {
                let count = self.since_mark()?;
                self.set_items(count)?;
            }
            // APPEND, APPENDS, BUILD: the contents of lists and the attributes of objects are dropped, because no
            // tensor needs them.
            b'a' | b'b' => {
                self.pop()?;
            }
            b'e' => {
                let count = self.since_mark()?;
                self.stack.truncate(self.stack.len() - count);
            }
            // REDUCE, NEWOBJ
            b'R' | 0x81 => self.call()?,
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                let items = self.pickle.keep(&[id]);
                self.push(PickleValue::Persistent(items))?;
            }
            opcode => {
                return Err(match refused_name(opcode) {
                    Some(opcode) => TorchError::Opcode { opcode },
                    None => TorchError::Damaged,
                });
            }
        }
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], TorchError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(TorchError::Damaged)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, TorchError> {
        Ok(self.take(1)?[0])
    }

    /// Reads a little-endian number of up to four bytes.
    fn number(&mut self, bytes: usize) -> Result<u32, TorchError> {
        let bytes = self.take(bytes)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    fn push(&mut self, value: PickleValue<'a>) -> Result<(), TorchError> {
        if self.stack.len() as u64 >= MAX_STACK {
            return Err(TorchError::TooLarge {
                what: "values on its pickle's stack",
                limit: MAX_STACK,
            });
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<PickleValue<'a>, TorchError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(TorchError::Damaged);
        }
        self.stack.pop().ok_or(TorchError::Damaged)
    }

    fn mark(&mut self) -> Result<(), TorchError> {
        if self.marks.len() as u64 >= MAX_MARKS {
            return Err(TorchError::TooLarge {
                what: "levels of nesting in its pickle",
                limit: MAX_MARKS,
            });
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// Pops the last mark and returns the number of values above it.
    fn since_mark(&mut self) -> Result<usize, TorchError> {
        let height = self.marks.pop().ok_or(TorchError::Damaged)?;
        Ok(self.stack.len() - height)
    }

    /// Returns the stack index of the first of the last `count` values, none of which may be below the last mark.
    fn last(&self, count: usize) -> Result<usize, TorchError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= floor);
        start.ok_or(TorchError::Damaged)
    }

    /// Reads a signed number and pushes it. A number of more than 64 bits cannot be a size, so it becomes `Other`.
    fn int(&mut self, bytes: usize) -> Result<(), TorchError> {
        let bytes = self.take(bytes)?;
        if bytes.len() > 8 {
            return self.push(PickleValue::Other);
        }
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let start = if negative { -1 } else { 0 };
        let value =
            bytes.iter().rev().fold(start, |number: i64, &byte| number << 8 | i64::from(byte));
        self.push(PickleValue::Int(value))
    }

    fn unsigned(&mut self, bytes: usize) -> Result<(), TorchError> {
        let value = self.number(bytes)?;
        self.push(PickleValue::Int(value.into()))
    }

    fn text(&mut self) -> Result<(), TorchError> {
        let length = self.number(4)?;
        let text = std::str::from_utf8(self.take(length as usize)?);
        self.push(PickleValue::Text(text.map_err(|_| TorchError::Damaged)?))
    }

    fn global(&mut self) -> Result<(), TorchError> {
        let mut ends = (0..self.rest.len()).filter(|&at| self.rest[at] == b'\n');
        let end = ends.nth(1).ok_or(TorchError::Damaged)?;
        let name = std::str::from_utf8(self.take(end)?).map_err(|_| TorchError::Damaged)?;
        self.take(1)?;
        self.push(PickleValue::Global(name))
    }

    fn put(&mut self, bytes: usize) -> Result<(), TorchError> {
        let key = self.number(bytes)?;
        let value = self.stack[self.last(1)?];
        self.memo.insert(key, value);
        Ok(())
    }

    fn get(&mut self, bytes: usize) -> Result<(), TorchError> {
        let key = self.number(bytes)?;
        let value = *self.memo.get(&key).ok_or(TorchError::Damaged)?;
        self.push(value)
    }

    fn tuple(&mut self, count: usize) -> Result<(), TorchError> {
        let start = self.last(count)?;
        let items = self.pickle.keep(&self.stack[start..]);
        self.stack.truncate(start);
        self.push(PickleValue::Tuple(items))
    }

    /// Moves the last `count` values, alternately keys and values, into the dictionary below them.
    fn set_items(&mut self, count: usize) -> Result<(), TorchError> {
        let owner = self.last(count + 1)?;
        let (pairs, rest) = self.stack[owner + 1..].as_chunks::<2>();
        if !rest.is_empty() {
            return Err(TorchError::Damaged);
        }
        // An owner that is not a dictionary is an object of some class. No tensor needs the items of such an object, so
        // they are dropped.
        if let PickleValue::Dict(DictId(index)) = self.stack[owner] {
            let pairs = pairs.iter().map(|&[key, value]| (key, value));
            self.pickle.dicts[index as usize].extend(pairs);
        }
        self.stack.truncate(owner + 1);
        Ok(())
    }

    fn call(&mut self) -> Result<(), TorchError> {
        let arguments = self.pop()?;
        let callable = self.pop()?;
        let is_dict = matches!(
            callable,
            PickleValue::Global("collections\nOrderedDict" | "collections\ndefaultdict")
        );
        let value = if is_dict {
            self.pickle.new_dict()
        } else {
            PickleValue::Call(self.pickle.keep(&[callable, arguments]))
        };
        self.push(value)
    }
}

/// Returns the name in `pickletools` of an opcode that exists but is rejected.
fn refused_name(opcode: u8) -> Option<&'static str> {
    Some(match opcode {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        b'd' => "DICT",
        b'l' => "LIST",
        b'g' => "GET",
        b'p' => "PUT",
        b'i' => "INST",
        b'o' => "OBJ",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x8b => "LONG4",
        0x8c => "SHORT_BINUNICODE",
        0x8d => "BINUNICODE8",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x93 => "STACK_GLOBAL",
        0x94 => "MEMOIZE",
        0x95 => "FRAME",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return None,
    })
}
