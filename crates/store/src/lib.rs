

pub mod cas;
