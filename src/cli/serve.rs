//! `mustela serve`: the parts of a service, put together and taken apart in order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use clap::Args;
use tokio::net::TcpListener;

use super::{EX_USAGE, Failure, complain};
use crate::config::Config;
use crate::disk::Disk;
use crate::encoder::shelf::Shelf;
use crate::ferret::pool::Pool;
use crate::ferret::rate::Objective;
use crate::http::body::BodyLimits;
use crate::http::events::Feed;
use crate::http::server::{self, Patience};
use crate::http::{self, App};
use crate::memory::{self, Room};
use crate::method::nearside::kind::DetectorKind;
use crate::metrics::{self, Figures, Metrics, ServiceFigures, StreamFigures};
use crate::model::checkpoint::{self, CheckpointError};
use crate::model::kind::Kinds;
use crate::model::network::NetworkKind;
use crate::model::predict::Predictor;
use crate::model::registry::{Models, RegistryError};
use crate::model::{Folder, Ground, ModelError, Settings, forget_attempts};
use crate::shutdown::{self, Shutdown, Signals};
use crate::stream::log::{self, Committer, Hooks, Log, LogError, Options, RedbLog};
use crate::stream::{Stream, StreamError, Streams};
use crate::{allocator, config, disk, trace};

/// How long the end waits for the log's other holders to let go of it.
const LOG_GRACE: Duration = Duration::from_secs(2);

/// The exit status where the data folder is damaged, or of another version (sysexits' EX_DATAERR).
pub(super) const EX_DATAERR: u8 = 65;
/// The exit status where the disk cannot be read or written, at the start or later (sysexits' EX_IOERR).
const EX_IOERR: u8 = 74;
/// The exit status where another process has the data folder (sysexits' EX_TEMPFAIL): it may work later.
const EX_TEMPFAIL: u8 = 75;

const EXIT_HELP: &str = "\
Examples:
  mustela serve                                      doors at 127.0.0.1:7070, data in ./mustela-data
  mustela serve --config mustela.toml                `mustela config` prints a file to begin with
  mustela serve --set memory.ceiling=2GiB --set compute.threads=4
  MUSTELA_MEMORY__CEILING=2GiB mustela serve

Exit status:
   0  ended by a signal, with all that was acknowledged on disk
  64  a wrong flag, key or value
  65  the data folder is damaged, or of another version
  74  the disk cannot be read or written, at the start or later (full, read-only, a failed sync)
  75  another process has the data folder
   1  anything else, such as an address that is taken";

/// Flags of `serve`; every key of the configuration can also be set by environment (`MUSTELA_HTTP__REQUEST_SECONDS`) or `--set`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_HELP)]
pub struct Arguments {
    /// Configuration file; what it leaves out keeps its default
    #[arg(long, env = "MUSTELA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the doors; port 0 takes a free one and prints it
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Address of /metrics; port 0 takes a free one and prints it
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_listen: Option<String>,
    /// Folder of everything durable
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Set any key of the configuration; may be given several times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = config::parse_setting)]
    settings: Vec<(String, String)>,
}

impl Arguments {
    fn load(self) -> Result<Config, config::ConfigError> {
        let mut overrides = self.settings;
        for (key, value) in [("listen", self.listen), ("metrics_listen", self.metrics_listen), ("data_dir", self.data_dir)] {
            overrides.extend(value.map(|value| (key.to_owned(), value)));
        }
        Config::load(self.config.as_deref(), config::environment(), &overrides)
    }
}

/// Runs a service until a signal ends it.
pub(super) fn run(arguments: Arguments) -> ExitCode {
    let config = match arguments.load() {
        Ok(config) => config,
        Err(error) => {
            complain(&error);
            return ExitCode::from(EX_USAGE);
        }
    };
    let tracing = trace::init(config.log_format);
    let served = super::runtime().and_then(|runtime| {
        let served = runtime.block_on(serve(config));
        // Whatever is still under way would only be waited for; all that was promised is durable.
        runtime.shutdown_background();
        served
    });
    tracing.end();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure);
            failure.downcast_ref::<Unusable>().map_or(ExitCode::FAILURE, |unusable| ExitCode::from(unusable.status))
        }
    }
}

/// A data folder that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
struct Unusable {
    status: u8,
    reason: String,
}

impl Unusable {
    fn disk(folder: &Path, error: &std::io::Error) -> Unusable {
        Unusable { status: EX_IOERR, reason: format!("the data folder {} cannot be used: {error}", folder.display()) }
    }
}

impl From<LogError> for Unusable {
    fn from(error: LogError) -> Unusable {
        let status = match error {
            LogError::Held(_) => EX_TEMPFAIL,
            LogError::Format(_) => EX_DATAERR,
            LogError::Storage(_) | LogError::OutOfOrder | LogError::Closed => EX_IOERR,
        };
        Unusable { status, reason: error.to_string() }
    }
}

impl From<StreamError> for Unusable {
    fn from(error: StreamError) -> Unusable {
        match error {
            StreamError::Storage(error) => error.into(),
            error => Unusable { status: EX_DATAERR, reason: error.to_string() },
        }
    }
}

impl From<RegistryError> for Unusable {
    fn from(error: RegistryError) -> Unusable {
        match error {
            RegistryError::Storage(error) | RegistryError::Model(ModelError::Storage(error)) => error.into(),
            RegistryError::Stream(error) => error.into(),
            RegistryError::Model(ModelError::Checkpoint(CheckpointError::Io(error))) => {
                Unusable { status: EX_IOERR, reason: error.to_string() }
            }
            error => Unusable { status: EX_DATAERR, reason: error.to_string() },
        }
    }
}

async fn serve(config: Config) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let grace = Duration::from_secs(config.http.shutdown_seconds);
    let (trigger, shutdown) = shutdown::channel();
    let kinds = kinds(&config)?;
    let service = Service::start(config, Arc::new(disk::FileSystem), kinds, shutdown).await?;
    println!("mustela: live page and doors at http://{}", service.address);
    println!("mustela: metrics at http://{}/metrics", service.metrics_address);
    signals.first().await;
    tracing::info!("draining");
    trigger.drain();
    service.stop(grace).await;
    Ok(())
}

/// A service that runs in this process; tests start several.
pub struct Service {
    /// Where the doors are.
    pub address: SocketAddr,
    /// Where `/metrics` is.
    pub metrics_address: SocketAddr,
    /// The models, for tests that look behind the doors.
    pub models: Arc<Models>,
    /// The streams, likewise.
    pub streams: Arc<Streams>,
    log: Arc<RedbLog>,
    doors: tokio::task::JoinHandle<()>,
    metrics: tokio::task::JoinHandle<()>,
}

impl Service {
    /// Opens the data folder, brings every model back, and opens the doors. `shutdown` begins the end.
    ///
    /// # Errors
    /// The data folder cannot be opened, or an address is taken.
    pub async fn start(config: Config, disk: Arc<dyn Disk>, kinds: Kinds, shutdown: Shutdown) -> Result<Service, Failure> {
        let metrics = Arc::new(Metrics::new()?);
        let opened = metrics.clone();
        let of = config.clone();
        let Opened { log, streams, models, predictor } =
            tokio::task::spawn_blocking(move || open(&of, disk, kinds, &opened)).await??;
        tokio::spawn(models.clone().share_after_start());
        let app = Arc::new(App {
            streams: streams.clone(),
            models: models.clone(),
            predictor,
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
            feed: Feed::new(config.http.connections_max),
            body_limits: BodyLimits::from(&config.http),
            request_seconds: config.http.request_seconds,
            wait_seconds_max: config.http.wait_seconds_max,
        });
        let patience = Patience {
            connections_max: config.http.connections_max,
            header: Duration::from_secs(config.http.header_seconds),
            shutdown: Duration::from_secs(config.http.shutdown_seconds),
        };
        let listener = bind(config.listen).await?;
        let metrics_listener = bind(config.metrics_listen).await?;
        let (address, metrics_address) = (listener.local_addr()?, metrics_listener.local_addr()?);
        let scrape = Router::new().route("/metrics", get(scrape)).with_state((app.clone(), patience.connections_max));
        let [at_doors, at_metrics] = ["doors", "metrics"].map(|listener| metrics.http_connections(listener));
        let doors = tokio::spawn(server::serve(listener, http::router(app), patience, shutdown.clone(), at_doors));
        let metrics = tokio::spawn(server::serve(metrics_listener, scrape, patience, shutdown, at_metrics));
        Ok(Service { address, metrics_address, models, streams, log, doors, metrics })
    }

    /// Waits for the doors to close, then ends the models, each with a checkpoint. The shutdown must have begun.
    pub async fn stop(self, grace: Duration) {
        // The doors end by themselves within their own time, which is the same; a little more lets them say so.
        if tokio::time::timeout(grace + LOG_GRACE, self.doors).await.is_err() {
            tracing::warn!("the doors did not close in time");
        }
        let Service { models, streams, metrics, log, .. } = self;
        let stopping = tokio::task::spawn_blocking(move || models.stop());
        if !matches!(tokio::time::timeout(grace, stopping).await, Ok(Ok(()))) {
            tracing::warn!("not every model wrote a checkpoint in time; the log has what is missing");
        }
        metrics.abort();
        metrics.await.ok();
        drop(streams);
        // Writer, models and doors let go of the log one after the other; it is closed here, by its last holder, so that the
        // data folder is free when this returns. All is durable by now: a straggler does not hold up the end.
        let deadline = tokio::time::Instant::now() + LOG_GRACE;
        while Arc::strong_count(&log) > 1 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(tokio::task::spawn_blocking(move || drop(log)).await);
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address}: {error}").into())
}

/// What counts in comparing plans.
pub(super) fn objective(config: &Config) -> Objective {
    Objective {
        half_life: Duration::from_millis(config.planner.half_life_ms),
        // A snapshot is begun at half the interval.
        publish_interval: Duration::from_millis(config.model.publish_interval_ms) / 2,
        in_flight_max: Some(config.planner.in_flight_max).filter(|&most| most > 0),
    }
}

/// The kinds of model that this binary knows.
///
/// # Errors
/// The compute threads cannot be started.
pub fn kinds(config: &Config) -> Result<Kinds, Failure> {
    let pool = Pool::new(config.compute.threads, i32::from(config.compute.nice))?;
    let shelf = Arc::new(Shelf::new(&config.models.dir));
    let network = NetworkKind { pool: pool.clone(), step_rows: config.model.step_rows, objective: objective(config) };
    Ok(Kinds::default().with(network).with(DetectorKind { shelf, pool }))
}

/// What lies in a data folder.
struct Opened {
    log: Arc<RedbLog>,
    streams: Arc<Streams>,
    models: Arc<Models>,
    predictor: Predictor,
}

/// Opens the data folder from the ground up: log, streams, models.
fn open(config: &Config, disk: Arc<dyn Disk>, kinds: Kinds, metrics: &Arc<Metrics>) -> Result<Opened, Failure> {
    let reserved_bytes = config.log.cache_bytes + config.memory.reserve_bytes;
    let room = Room::new(config.memory.ceiling, memory::machine_bytes(), reserved_bytes)?;
    let data_dir = std::path::absolute(&config.data_dir)?;
    disk.create_dir_all(&data_dir).map_err(|error| Unusable::disk(&data_dir, &error))?;
    check_complete(disk.as_ref(), &data_dir)?;
    let options = Options { cache_bytes: config.log.cache_bytes as usize, check_bytes_max: config.log.check_bytes_max };
    let log = Arc::new(RedbLog::open(disk.as_ref(), &data_dir, &options).map_err(Unusable::from)?);
    let folder = Folder { path: data_dir.clone(), identity: log.identity().to_owned() };
    let committer = Committer::start(log.clone(), config.log.commit_entries_max, hooks(metrics, disk.clone(), data_dir))?;
    let streams = Arc::new(Streams::open(log.clone(), committer.clone(), config.log.bytes_max).map_err(Unusable::from)?);
    let settings = Settings {
        review_interval: Duration::from_secs(config.planner.review_seconds),
        publish_interval: Duration::from_millis(config.model.publish_interval_ms),
        lag_rows_max: config.model.lag_rows_max,
        memory_bytes_max: config.model.memory_bytes_max,
        room,
        sliding_rows: config.model.sliding_window_rows as u64,
        drift_delta: config.drift.delta_millionths as f64 / 1e6,
        checkpoint_rows: config.checkpoint.interval_rows,
        checkpoint_interval: Duration::from_secs(config.checkpoint.interval_seconds),
        retain_bytes: config.log.retain_bytes,
    };
    let predict = &config.predict;
    let predictor = Predictor::new(predict.threads, predict.batch_rows_max, predict.queue_max, metrics.clone())?;
    let (asked, counted) = (predictor.clone(), metrics.clone());
    let ground = Arc::new(Ground::new(disk, folder, committer, counted, settings, asked, end_now));
    let models = Arc::new(Models::open(ground, streams.clone(), kinds).map_err(Unusable::from)?);
    Ok(Opened { log, streams, models, predictor })
}

/// Refuses a folder that has models and no log: with a new log every stream and every row would be gone without a word.
fn check_complete(disk: &dyn Disk, data_dir: &Path) -> Result<(), Unusable> {
    let models = disk.list(&checkpoint::folders(data_dir)).map_err(|error| Unusable::disk(data_dir, &error))?;
    let log = data_dir.join(log::FILE);
    if models.is_empty() || log.exists() {
        return Ok(());
    }
    let reason = format!(
        "{} is missing, and the data folder holds checkpoints of models: put it back, or begin with an empty folder",
        log.display()
    );
    Err(Unusable { status: EX_DATAERR, reason })
}

/// What the log's commits are measured by, and what happens when one fails: an fsync that failed once may have lost what it
/// was asked to keep, so the process ends rather than acknowledge anything more.
fn hooks(metrics: &Arc<Metrics>, disk: Arc<dyn Disk>, data_dir: PathBuf) -> Hooks {
    let metrics = metrics.clone();
    Hooks {
        committed: Box::new(move |seconds, entries| {
            metrics.log_commit_seconds.observe(seconds);
            metrics.log_commit_entries.observe(entries as f64);
        }),
        fatal: Box::new(move |error| {
            forget_attempts(disk.as_ref(), &data_dir);
            end_now(error);
        }),
    }
}

/// Ends the process, because the disk may have lost what it was given.
fn end_now(error: &dyn std::fmt::Display) {
    tracing::error!(%error, "the disk failed; ending, as nothing more can be promised");
    std::process::exit(i32::from(EX_IOERR));
}

/// Everything in Prometheus's text format. The log is asked for the bounds of its streams, so not on a thread that serves connections.
async fn scrape(State((app, connections_max)): State<(Arc<App>, usize)>) -> Result<impl IntoResponse, StatusCode> {
    let rendered = tokio::task::spawn_blocking(move || app.metrics.render(&figures(&app, connections_max))).await;
    let text = rendered.map_err(|error| error.to_string()).and_then(|text| text.map_err(|error| error.to_string()));
    let text = text.map_err(|error| {
        tracing::error!(error, "the metrics cannot be written");
        StatusCode::INTERNAL_SERVER_ERROR
    })?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}

/// What there is at this moment. A stream whose log cannot be read has no figures; the process is ending.
fn figures(app: &App, connections_max: usize) -> Figures {
    let App { streams, models, predictor, .. } = app;
    let (queued_queries, queued_queries_max) = predictor.queued();
    let service = ServiceFigures {
        log_stored_bytes: streams.stored_bytes(),
        log_max_bytes: streams.bytes_max(),
        memory_ceiling_bytes: models.ceiling_bytes(),
        memory_shared_bytes: models.shared_bytes(),
        allocated_bytes: allocator::live_bytes(),
        allocated_peak_bytes: allocator::peak_bytes(),
        connections_max,
        queued_queries,
        queued_queries_max,
    };
    let of = |stream: &Arc<Stream>| {
        let (first_sequence, sequence) = stream.bounds().ok()?;
        Some(StreamFigures { stream: stream.name.clone(), first_sequence, sequence })
    };
    Figures {
        service,
        streams: streams.list().iter().filter_map(of).collect(),
        models: models.list().iter().map(|live| live.figures()).collect(),
    }
}
