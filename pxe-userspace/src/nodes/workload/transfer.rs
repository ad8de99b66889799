//! Copies images from the appliance's engine to a node's, as `docker save` writes them, without a registry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::ImportImageOptionsBuilder;
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::container::{self, WorkloadError};
use crate::nodes::engine::Engine;

/// The node's engine answers when it has read the image; it unpacks layers while it reads.
const LOADS_WITHIN: Duration = Duration::from_secs(3600);

/// Makes sure that a node's engine has the image that the appliance's engine has by this name, and returns its ID.
/// While the appliance's engine does not answer, the node's image is accepted.
pub(super) async fn bring(appliance: &Engine, node: &Docker, image: &str) -> Result<String, WorkloadError> {
    let there = container::image_id(node, image).await?;
    let appliance = match (appliance.connect().await, there.clone()) {
        (Ok(docker), _) => docker,
        (Err(_), Some(there)) => return Ok(there),
        (Err(error), None) => return Err(error.into()),
    };
    let Some(here) = container::image_id(&appliance, image).await? else {
        return Err(WorkloadError::NoImage { image: image.to_owned() });
    };
    if there.as_ref() == Some(&here) {
        return Ok(here);
    }
    let start = Instant::now();
    let bytes = Arc::new(AtomicU64::new(0));
    let counted = bytes.clone();
    // The stream lives longer than this call's borrow of the name.
    let (from, name) = (appliance.clone(), image.to_owned());
    let saved = saved_image(from, name).inspect_ok(move |part| {
        counted.fetch_add(part.len() as u64, Ordering::Relaxed);
    });
    let options = ImportImageOptionsBuilder::default().quiet(true).build();
    node.clone()
        .with_timeout(LOADS_WITHIN)
        .import_image_stream(options, saved, None)
        .try_collect::<Vec<_>>()
        .await
        .map_err(WorkloadError::engine("load the image"))?;
    let bytes = bytes.load(Ordering::Relaxed);
    tracing::info!(image, bytes, seconds = start.elapsed().as_secs_f64(), "image brought to a node");
    match container::image_id(node, image).await? {
        Some(there) if there == here => Ok(here),
        there => {
            let there = there.unwrap_or_else(|| "nothing".into());
            Err(WorkloadError::OtherImage { image: image.to_owned(), here, there })
        }
    }
}

/// `docker save`, with owned arguments.
fn saved_image(
    docker: Docker,
    image: String,
) -> impl futures_util::Stream<Item = Result<bytes::Bytes, bollard::errors::Error>> + Send + 'static {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        let mut saved = std::pin::pin!(docker.export_image(&image));
        while let Some(part) = saved.next().await {
            // Without a reader there is no reason to continue.
            if sender.send(part).await.is_err() {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}
