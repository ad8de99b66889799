//! catalog
pub struct Catalog;
