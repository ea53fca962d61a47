//! Builds the pod supervisor, a static program of its own, and hands its path to the crate.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// What the outer cargo sets for this build and must not reach the inner one.
const OUTER: [&str; 9] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_INCREMENTAL",
    "CARGO_MAKEFLAGS",
];

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let workspace = here.ancestors().nth(2).expect("the crate lies two folders deep").to_path_buf();
    for path in ["crates/supervisor/src", "crates/supervisor/Cargo.toml", "crates/node/build.rs"] {
        println!("cargo:rerun-if-changed={}", workspace.join(path).display());
    }
    let outer_target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let target_dir = outer_target.join("supervisor");
    let triple = format!("{}-unknown-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it"));
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets it"));
    for name in OUTER {
        cargo.env_remove(name);
    }
    let status = cargo
        .current_dir(&workspace)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args(["build", "--quiet", "--profile", "supervisor", "-p", "supervisor", "--features", "program"])
        .args(["--bin", "colibri-supervisor", "--target", &triple, "--target-dir"])
        .arg(&target_dir)
        .status()
        .expect("cargo can be run again");
    assert!(status.success(), "the pod supervisor did not build");
    let program = target_dir.join(triple).join("supervisor").join("colibri-supervisor");
    println!("cargo:rustc-env=COLIBRI_SUPERVISOR={}", program.display());
}
