//! The encoders of a folder.
use super::{Encoder, Weights};
use std::sync::Arc;
/// Temporary.
pub struct Source {
    /// .
    pub name: &'static str,
    /// .
    pub side: usize,
    /// .
    pub blocks: &'static [&'static str],
}
static ALL: [Source; 2] = [
    Source { name: "efficientnet-lite0", side: 224, blocks: &["block8", "block11", "block15"] },
    Source { name: "squeezenet1.1", side: 224, blocks: &["fire5", "fire7", "fire9"] },
];
impl Source {
    /// The blocks that detectors read where nobody says.
    pub fn blocks(&self) -> Vec<String> {
        self.blocks.iter().map(|&block| block.to_owned()).collect()
    }
    /// .
    pub fn find(name: &str) -> Result<&'static Source, String> {
        ALL.iter().find(|s| s.name == name).ok_or("none".to_owned())
    }
}
/// Temporary.
pub struct Shelf(std::path::PathBuf);
impl Shelf {
    /// .
    pub fn new(dir: impl Into<std::path::PathBuf>) -> Shelf {
        Shelf(dir.into())
    }
    /// Temporary.
    pub fn get(&self, name: &str) -> Result<Arc<Encoder>, String> {
        let bytes = std::fs::read(self.0.join(format!("{name}.safetensors"))).map_err(|e| e.to_string())?;
        let w = Weights::from_safetensors(&bytes).map_err(|e| e.to_string())?;
        Encoder::load(name, &w).ok_or("no such")?.map(Arc::new).map_err(|e| e.to_string())
    }
}
