//! Files in the layout of `torch.save` (PyTorch 1.6 and newer), written byte by byte: an archive of
//! stored entries, data at multiples of 64 bytes, sizes in data descriptors, and a pickle of
//! protocol 2 whose strings and classes go through the memo.

use std::collections::HashMap;

use scpeft_checkpoint::{Dtype, HostTensor};

/// Data of an entry begins at a multiple of this.
const ALIGNMENT: usize = 64;

/// A state dict to be written.
#[derive(Debug, Clone, Default)]
pub(crate) struct TorchSave {
    storages: Vec<(Dtype, Vec<u8>)>,
    entries: Vec<(String, Value)>,
}

#[derive(Debug, Clone)]
enum Value {
    Tensor { storage: usize, shape: Vec<usize> },
    Int(u8),
}

impl TorchSave {
    /// Adds a tensor with a storage of its own.
    pub(crate) fn tensor(mut self, name: &str, tensor: &HostTensor<'_>) -> Self {
        let value = Value::Tensor {
            storage: self.storages.len(),
            shape: tensor.shape.clone(),
        };
        self.storages.push((tensor.dtype, tensor.data.to_vec()));
        self.entries.push((name.to_owned(), value));
        self
    }

    /// Adds a second name for the tensor `of`, in the same storage.
    pub(crate) fn alias(mut self, name: &str, of: &str) -> Self {
        let (_, value) = self
            .entries
            .iter()
            .find(|(known, _)| known == of)
            .expect("the tensor was added before");
        let value = value.clone();
        self.entries.push((name.to_owned(), value));
        self
    }

    /// Adds an entry that is no tensor.
    pub(crate) fn int(mut self, name: &str, value: u8) -> Self {
        self.entries.push((name.to_owned(), Value::Int(value)));
        self
    }

    /// The bytes of the file.
    pub(crate) fn build(&self) -> Vec<u8> {
        self.build_with_pickle(&self.pickle())
    }

    /// The bytes of a file with this pickle in place of the right one.
    pub(crate) fn build_with_pickle(&self, pickle: &[u8]) -> Vec<u8> {
        let mut archive = Archive::default();
        archive.add("model/data.pkl", pickle);
        archive.add("model/.format_version", b"1");
        archive.add("model/.storage_alignment", b"64");
        archive.add("model/byteorder", b"little");
        for (key, (_, bytes)) in self.storages.iter().enumerate() {
            archive.add(&format!("model/data/{key}"), bytes);
        }
        archive.add("model/version", b"3\n");
        archive.add("model/.data/serialization_id", &[b'0'; 40]);
        archive.finish()
    }

    /// The pickle alone.
    pub(crate) fn pickle(&self) -> Vec<u8> {
        let mut pickle = Pickle::default();
        pickle.bytes.extend(b"\x80\x02");
        pickle.class("collections", "OrderedDict");
        pickle.bytes.extend(b")R");
        pickle.put();
        pickle.bytes.push(b'(');
        for (name, value) in &self.entries {
            pickle.text(name);
            match value {
                Value::Int(number) => pickle.bytes.extend([b'K', *number]),
                Value::Tensor { storage, shape } => {
                    pickle.tensor(*storage, &self.storages[*storage], shape);
                }
            }
        }
        pickle.bytes.extend(b"u}");
        pickle.text("_metadata");
        pickle.class("collections", "OrderedDict");
        pickle.bytes.extend(b")Rsb.");
        pickle.bytes
    }
}

#[derive(Default)]
struct Pickle {
    bytes: Vec<u8>,
    memo: HashMap<Vec<u8>, u32>,
    memoized: u32,
}

impl Pickle {
    fn put(&mut self) {
        match u8::try_from(self.memoized) {
            Ok(small) => self.bytes.extend([b'q', small]),
            Err(_) => {
                self.bytes.push(b'r');
                self.bytes.extend(self.memoized.to_le_bytes());
            }
        }
        self.memoized += 1;
    }

    /// Writes `code` the first time, a reference to the memo after that.
    fn shared(&mut self, code: Vec<u8>) {
        if let Some(&index) = self.memo.get(&code) {
            match u8::try_from(index) {
                Ok(small) => self.bytes.extend([b'h', small]),
                Err(_) => {
                    self.bytes.push(b'j');
                    self.bytes.extend(index.to_le_bytes());
                }
            }
            return;
        }
        self.bytes.extend(&code);
        self.memo.insert(code, self.memoized);
        self.put();
    }

    fn text(&mut self, text: &str) {
        let mut code = vec![b'X'];
        code.extend((text.len() as u32).to_le_bytes());
        code.extend(text.as_bytes());
        self.shared(code);
    }

    fn class(&mut self, module: &str, name: &str) {
        self.shared(format!("c{module}\n{name}\n").into_bytes());
    }

    fn number(&mut self, number: usize) {
        match (u8::try_from(number), u16::try_from(number)) {
            (Ok(small), _) => self.bytes.extend([b'K', small]),
            (_, Ok(medium)) => {
                self.bytes.push(b'M');
                self.bytes.extend(medium.to_le_bytes());
            }
            _ => {
                self.bytes.push(b'J');
                self.bytes.extend((number as u32).to_le_bytes());
            }
        }
    }

    fn sizes(&mut self, sizes: &[usize]) {
        if sizes.is_empty() {
            self.bytes.push(b')');
            return;
        }
        if sizes.len() > 3 {
            self.bytes.push(b'(');
        }
        for &size in sizes {
            self.number(size);
        }
        self.bytes.push(match sizes.len() {
            1 => 0x85,
            2 => 0x86,
            3 => 0x87,
            _ => b't',
        });
        self.put();
    }

    fn tensor(&mut self, key: usize, (dtype, bytes): &(Dtype, Vec<u8>), shape: &[usize]) {
        self.class("torch._utils", "_rebuild_tensor_v2");
        self.bytes.extend(b"((");
        self.text("storage");
        let class = match dtype {
            Dtype::F32 => "FloatStorage",
            Dtype::F16 => "HalfStorage",
            Dtype::I64 => "LongStorage",
            other => panic!("no storage class for {other} here"),
        };
        self.class("torch", class);
        self.text(&key.to_string());
        self.text("cpu");
        self.number(bytes.len() / dtype.size());
        self.bytes.push(b't');
        self.put();
        self.bytes.push(b'Q');
        self.number(0);
        self.sizes(shape);
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        self.sizes(&strides);
        self.bytes.push(0x89);
        self.class("collections", "OrderedDict");
        self.bytes.extend(b")R");
        self.put();
        self.bytes.push(b't');
        self.put();
        self.bytes.push(b'R');
        self.put();
    }
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    directory: Vec<u8>,
    count: u16,
}

/// The fields that local and central header share: version, UTF-8 names with a data descriptor,
/// stored, no time.
const COMMON: [u8; 10] = [0, 0, 8, 8, 0, 0, 0, 0, 0, 0];

impl Archive {
    fn add(&mut self, name: &str, data: &[u8]) {
        let start = self.bytes.len() as u32;
        let name_len = (name.len() as u16).to_le_bytes();
        let before = self.bytes.len() + 30 + name.len();
        let padding = (before + 4).next_multiple_of(ALIGNMENT) - before - 4;
        self.bytes.extend(b"PK\x03\x04");
        self.bytes.extend(COMMON);
        self.bytes.extend([0; 12]);
        self.bytes.extend(name_len);
        self.bytes.extend((padding as u16 + 4).to_le_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.extend(b"FB");
        self.bytes.extend((padding as u16).to_le_bytes());
        self.bytes.extend(vec![b'Z'; padding]);
        self.bytes.extend(data);
        let size = (data.len() as u32).to_le_bytes();
        let sums = [crc32(data).to_le_bytes(), size, size].concat();
        self.bytes.extend(b"PK\x07\x08");
        self.bytes.extend(&sums);
        self.directory.extend(b"PK\x01\x02\0\0");
        self.directory.extend(COMMON);
        self.directory.extend(&sums);
        self.directory.extend(name_len);
        self.directory.extend([0; 12]);
        self.directory.extend(start.to_le_bytes());
        self.directory.extend(name.as_bytes());
        self.count += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        let start = (self.bytes.len() as u32).to_le_bytes();
        let size = (self.directory.len() as u32).to_le_bytes();
        let count = self.count.to_le_bytes();
        self.bytes.extend(&self.directory);
        self.bytes.extend(b"PK\x05\x06\0\0\0\0");
        self.bytes.extend([count, count].concat());
        self.bytes.extend([size, start].concat());
        self.bytes.extend([0, 0]);
        self.bytes
    }
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
