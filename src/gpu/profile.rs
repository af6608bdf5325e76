//! What was measured once on a device and is looked up when a plan is recorded.
//!
//! A run never times kernels to choose between them: that would cost it its reproducibility. A
//! profile is a file of answers (which variant for which product) that `limbeck tune` writes, that
//! a run names with `--profile`, and that its record keeps. To this room they are just text.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gpu::adapter::AdapterReport;

const SCHEMA: u32 = 1;

/// Answers for one device.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    schema_version: u32,
    /// The adapter and driver that the answers were measured on, as [`AdapterReport::line`] says it.
    pub adapter: String,
    /// Question to answer.
    pub answers: BTreeMap<String, String>,
}

impl Profile {
    /// No answers: the built-in defaults decide.
    pub fn empty(adapter: &AdapterReport) -> Self {
        Self { schema_version: SCHEMA, adapter: adapter.line(), answers: BTreeMap::new() }
    }

    /// Reads a profile and holds it to the adapter at hand.
    ///
    /// # Errors
    /// [`Error::Data`] where the file is no profile or belongs to another adapter or driver.
    pub fn load(path: &Path, adapter: &AdapterReport) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let profile: Self = serde_json::from_slice(&bytes).map_err(|e| {
            Error::data(path, format!("line {}", e.line()), "a tuning profile", e.to_string())
        })?;
        let again = "measure this device with `limbeck tune`";
        if profile.schema_version != SCHEMA {
            let found = profile.schema_version.to_string();
            return Err(Error::data(path, "schema_version", SCHEMA.to_string(), found).with_hint(again));
        }
        if profile.adapter != adapter.line() {
            return Err(Error::data(path, "adapter", adapter.line(), profile.adapter).with_hint(again));
        }
        Ok(profile)
    }

    /// The vector width in bits at which lavapipe was measured, as its name says it: nothing for other drivers, and
    /// for a file that is no profile, which is refused when it is loaded.
    pub fn width(path: &Path) -> Option<String> {
        let profile: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let (words, _) = profile.adapter.split_once("llvmpipe (")?.1.split_once(" bits)")?;
        let width = words.rsplit(' ').next()?;
        width.parse::<u32>().is_ok().then(|| width.to_owned())
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("text and numbers always serialise") + "\n"
    }
}
