//! The encoders of a folder.
use super::{Encoder, Weights};
use std::sync::Arc;
/// Temporary.
pub struct Shelf(pub std::path::PathBuf);
impl Shelf {
    /// Temporary.
    pub fn get(&self, name: &str) -> Result<Arc<Encoder>, String> {
        let bytes = std::fs::read(self.0.join(format!("{name}.safetensors"))).map_err(|e| e.to_string())?;
        let w = Weights::from_safetensors(&bytes).map_err(|e| e.to_string())?;
        Encoder::load(name, &w).ok_or("no such")?.map(Arc::new).map_err(|e| e.to_string())
    }
}
