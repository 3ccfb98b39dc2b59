//! Detectors of live networks: which network is watched, and the door that adopts its newest version.

use std::any::Any;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::{find, invalid, known, view};
use crate::ferret::snapshot::NetworkSnapshot;
use crate::http::App;
use crate::http::problem::Problem;
use crate::method::nearside::Setting;
use crate::method::nearside::parent::{Adoption, Watched, freeze};
use crate::model::blobs::name_of;
use crate::model::live::{ChangeError, Live, Published, Wish};
use crate::model::network;

/// What a detector's spec says of the network of this name, and, of a detector that is to be made, the network itself. Where the detector is there
/// already, it is what that one watches: a body that is put again means the same, whatever has become of the network.
pub(super) fn watched(app: &App, detector: &str, name: &str) -> Result<(Watched, Option<Arc<Live>>), Problem> {
    let before = app.models.get(detector).ok().and_then(|live| of(&live)).filter(|watched| watched.model == name);
    if let Some(watched) = before {
        return Ok((watched, None));
    }
    let parent = app.models.get(name).map_err(|error| invalid(format!("watches: {error}")))?;
    if parent.spec.kind != network::KIND {
        return Err(invalid(format!("watches: `{name}` is of kind `{}`, and no network", parent.spec.kind)));
    }
    Ok((described(&parent), Some(parent)))
}

fn described(parent: &Live) -> Watched {
    // How it is trained does not say what it is.
    let network = parent.spec.settings.get("network").map(|network| ("network".to_owned(), network.clone()));
    Watched { model: parent.name.clone(), settings: network.into_iter().collect(), schema: parent.stream.schema.clone() }
}

/// The name of the live network that a detector watches.
pub(in crate::http) fn watched_model(live: &Live) -> Option<&str> {
    live.spec.settings.get("watches")?["model"].as_str()
}

/// What a detector watches, if it is a live network.
pub(super) fn of(live: &Live) -> Option<Watched> {
    serde_json::from_value(live.spec.settings.get("watches")?.clone()).ok()
}

/// To adopt the newest version of a network: what is adopted, and the setting that says so.
///
/// # Errors
/// It has no version to show.
pub(super) fn newest(parent: &Live) -> Result<(Adoption, Wish), Problem> {
    let failed = |reason: &str| Problem::conflict("model_failed", format!("model `{}` {reason}", parent.name));
    // Let go of with this function: a trainer may wait for readers.
    let published = parent.published();
    let any: Arc<dyn Any + Send + Sync> = published.snapshot.clone();
    let snapshot: Arc<NetworkSnapshot> = any.downcast().map_err(|_| failed("stands still and shows no version"))?;
    let weights = freeze(&snapshot).map_err(|error| failed(&error.to_string()))?;
    let adoption = Adoption { model_id: parent.id, version: published.version, weights: name_of(&weights) };
    let wish = Wish { value: json!(Setting::Adopt(adoption.clone())), blob: Some(weights) };
    Ok((adoption, wish))
}

/// What a detector looks through, as readers see it.
fn adopted(published: &Published) -> Option<Adoption> {
    Some(known(published.snapshot.clone())?.watching.as_ref()?.adopted.clone())
}

/// Looks through the newest version of the network from here on; answered when readers see it so.
pub(in crate::http) async fn adopt(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let live = find(&app, &name)?;
    let watched = of(&live).ok_or_else(|| {
        let detail = format!("detector `{name}` watches a frozen encoder, which has one version");
        Problem::unprocessable("invalid_change", detail)
    })?;
    let (adoption, wish) = app
        .blocking(move |app| {
            let parent = app.models.get(&watched.model)?;
            if described(&parent) == watched {
                return newest(&parent);
            }
            let detail = format!(
                "model `{}` is another network than the one that detector `{name}` watches: make a detector of it",
                parent.name
            );
            Err(Problem::conflict("network_changed", detail))
        })
        .await?;
    let is_done = |published: &Published| adopted(published).is_some_and(|adopted| adopted.covers(&adoption));
    if !is_done(&live.published()) {
        live.set(wish).await?;
        if !live.shows(is_done).await {
            return Err(gone(&app, &live));
        }
    }
    Ok(Json(view(&live)))
}

/// A detector that has ended while it was waited for.
fn gone(app: &App, live: &Live) -> Problem {
    let is_there = app.models.get(&live.name).is_ok_and(|other| other.id == live.id);
    match live.status_lent().failure.clone().filter(|_| is_there) {
        Some(failure) => ChangeError::Failed(failure).into(),
        None => Problem::not_found("detector", &live.name),
    }
}
