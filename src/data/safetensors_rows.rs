//! Rows in a .safetensors file: tensors named as in [`super::Keys`].

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::Split;
use super::array::{Array, Bytes, ElementType, Header};
use super::load::LoadOptions;
use super::named::{Store, assemble};
use super::read::{self, SourceFile};
use crate::error::{Error, Result};

struct Tensors<'a> {
    path: &'a Path,
    source: SourceFile,
    tensors: SafeTensors<'a>,
}

/// Loads the tensors of a file; it becomes resident whatever its size.
pub(crate) fn load(path: &Path, options: &LoadOptions) -> Result<Split> {
    let (bytes, source) = read::whole(path)?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::data(path, "header", "a whole safetensors file", e.to_string()))?;
    assemble(path, &mut Tensors { path, source, tensors }, options)
}

impl Store for Tensors<'_> {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tensors.names().into_iter().map(|name| name.to_owned()).collect();
        names.sort_unstable();
        names
    }

    fn open(&mut self, name: &str, _resident_limit: u64) -> Result<(Array, SourceFile)> {
        let at = format!("tensor `{name}`: ");
        let tensor =
            self.tensors.tensor(name).map_err(|e| Error::data(self.path, &at, "a tensor", e.to_string()))?;
        let kind = match tensor.dtype() {
            Dtype::BOOL => ElementType::Bool,
            Dtype::U8 => ElementType::U8,
            Dtype::I8 => ElementType::I8,
            Dtype::U16 => ElementType::U16,
            Dtype::I16 => ElementType::I16,
            Dtype::U32 => ElementType::U32,
            Dtype::I32 => ElementType::I32,
            Dtype::U64 => ElementType::U64,
            Dtype::I64 => ElementType::I64,
            Dtype::F16 => ElementType::F16,
            Dtype::BF16 => ElementType::Bf16,
            Dtype::F32 => ElementType::F32,
            Dtype::F64 => ElementType::F64,
            other => {
                return Err(Error::data(
                    self.path,
                    at,
                    "plain numbers of 8 to 64 bits",
                    format!("{other:?}"),
                ));
            }
        };
        let array = Array {
            path: self.path.to_owned(),
            at,
            header: Header {
                kind,
                shape: tensor.shape().to_vec(),
                big_endian: false,
                fortran: false,
                length: 0,
            },
            bytes: Bytes::Memory(tensor.data().to_vec()),
        };
        Ok((array, self.source.clone()))
    }
}
