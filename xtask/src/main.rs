mod assets;
mod build;
mod paths;
mod setup;

fn main() -> anyhow::Result<()> {
    use setup::Need;
    match std::env::args().nth(1).as_deref() {
        Some("setup") => {
            setup::ensure(&[Need::Build, Need::Assets, Need::Lab, Need::Test, Need::Bench])?;
            assets::make()
        }
        Some("build") => {
            setup::ensure(&[Need::Build, Need::Assets])?;
            build::all()
        }
        _ => anyhow::bail!("usage: cargo xtask setup | build"),
    }
}
