fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let path = std::env::args().nth(3).unwrap();
    let config = bridgehead::config::load(path.as_ref()).map_err(|p| anyhow::anyhow!("{p:?}"))?;
    tokio::runtime::Runtime::new()?.block_on(bridgehead::app::serve(path.as_ref(), config))
}
