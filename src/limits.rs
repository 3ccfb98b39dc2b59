//! Every bound that does not come from the configuration, in one place, so that "how large may it be?" has one answer.

/// Rows that one record of the log may hold; a larger post becomes several records of one transaction.
pub const RECORD_ROWS_MAX: usize = 1024;
/// Decoded bytes that one record of the log may hold, unless a single row is larger.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// Decoded bytes of one row.
pub const ROW_BYTES_MAX: usize = 16 << 20;
/// Bytes of a request that is a JSON document and not rows: a schema, a model, a budget.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Rows of one post.
pub const POST_ROWS_MAX: usize = 1 << 20;
/// Rows of one query: its snapshot is held until the last of them is answered.
pub const PREDICT_ROWS_MAX: usize = 8192;
/// Probabilities of one query's answer: rows times classes.
pub const PREDICT_NUMBERS_MAX: usize = 1 << 20;
/// Fields of a schema.
pub const FIELDS_MAX: usize = 4096;
/// Classes of a target.
pub const CLASSES_MAX: usize = 65_536;
/// Bytes of a class's name or a row's id.
pub const LABEL_BYTES_MAX: usize = 256;
/// Decoded bytes that rows of columns may take beyond two for each byte of their body, which is what plain numbers take of CSV at
/// most: so much may come of values that are missing, which cost a client a byte or nothing.
pub const MISSING_BYTES_MAX: usize = 16 << 20;
/// Bytes of a value of a categorical column.
pub const CATEGORY_BYTES_MAX: usize = 256;
/// Buckets of a categorical column, beside the one of missing values: a bucket is exact in 32-bit floats.
pub const CATEGORY_BUCKETS_MAX: usize = 65_536;
/// Numbers that a category becomes in a network.
pub const EMBEDDING_DIMENSION_MAX: usize = 1024;
/// Bytes of an `Idempotency-Key`.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Bytes of a stream's or a model's name.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of the text of a refusal, and of each fault that it lists: it may quote what a client sent.
pub const PROBLEM_TEXT_BYTES_MAX: usize = 2048;
/// Faults listed in the answer to one bad post; the rest are only counted.
pub const ERRORS_LISTED_MAX: usize = 16;
/// Faults after which the reading of a bad post ends: counting on would cost far more than its bytes, as where each of a
/// million empty rows lacks 4096 columns.
pub const FAULTS_COUNTED_MAX: u64 = 10_000;
/// Members (gzip) or frames (zstd, skippable ones too) of one body. Block-compressed gzip has one each 64 KiB.
pub const BODY_FRAMES_MAX: usize = 4096;
/// The largest window of a zstd frame, as a power of two: 8 MiB, what RFC 9659 lets a sender use over HTTP.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Rows of a coreset's window where a spec names none: choosing takes milliseconds.
pub const CORESET_WINDOW_ROWS: u64 = 256;
/// Rows of a coreset's window: each is compared with each other one of its class.
pub const CORESET_WINDOW_ROWS_MAX: u64 = 1024;
/// Rows of the window that `random_n` draws from where a spec names none.
pub const DRAWN_WINDOW_ROWS: u64 = 4096;
/// Rows of the window that `random_n` draws from: the decision names each row that is kept.
pub const DRAWN_WINDOW_ROWS_MAX: u64 = 65_536;
/// Rows and labels that may come between a row and its late label: about 100 bytes of each row are kept in memory for as long.
pub const LABEL_WINDOW_ROWS_MAX: u64 = 1 << 20;
/// Labels listed in an answer because no row waits for them; the rest are only counted.
pub const UNMATCHED_LISTED_MAX: usize = 64;
/// Pixels on a side of a picture that comes encoded, at least.
pub const PICTURE_SIDE_MIN: u32 = 8;
/// Pixels on a side of a picture that comes encoded.
pub const PICTURE_SIDE_MAX: u32 = 8192;
/// Bytes that decoding a picture may take, pixels included.
pub const PICTURE_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a picture that comes encoded.
pub const PICTURE_ENCODED_BYTES_MAX: usize = 16 << 20;
/// Pixels on a side of the squares that an image field is decoded to: the least that convolutions have something to do with, and
/// the most.
pub const IMAGE_SIDE_MIN: usize = 8;
/// See [`IMAGE_SIDE_MIN`].
pub const IMAGE_SIDE_MAX: usize = 512;
/// Bytes that the pictures of one post may have when they are decoded: a picture of one colour has a thousandth of that encoded.
pub const POST_PICTURES_BYTES_MAX: usize = 64 << 20;
/// Pixels that are decoded for one post: four pictures of the largest size, and some seconds of work. Few bytes may ask for so many.
pub const POST_PIXELS_MAX: u64 = 1 << 28;
/// Rows of each class that a detector of a live network keeps, at most: it looks at all of them again when it adopts a version.
pub const KEPT_ROWS_MAX: usize = 1024;
/// Pictures that a detector looks at for one request: some seconds of work.
pub const DETECT_PICTURES_MAX: usize = 64;
/// Numbers of a hidden state whose covariance is inverted: 8 MiB, and a third of a second each time.
pub const WHITENED_WIDTH_MAX: usize = 1024;
/// The same of either side of a map between encoders, which is inverted nine times at each fit.
pub const CARRIED_WIDTH_MAX: usize = 512;
/// Held-out rows that a detector keeps for its threshold.
pub const CALIBRATION_ROWS_MAX: usize = 10_000;
/// Rows of one step.
pub const STEP_ROWS_MAX: usize = 4096;
/// Layers of a network, those inside residual blocks and the blocks themselves included.
pub const LAYERS_MAX: usize = 256;
/// Residual blocks inside each other.
pub const LAYERS_DEPTH_MAX: usize = 8;
/// Width of a ResNet-18 or a MobileNet: with twice as many either would have more than [`PARAMETERS_MAX`] in any case.
pub const WIDTH_MAX: usize = 512;
/// Weights of a network.
pub const PARAMETERS_MAX: usize = 1 << 30;
/// Streams, and models, of one process.
pub const STREAMS_MAX: usize = 4096;
/// See [`STREAMS_MAX`].
pub const MODELS_MAX: usize = 4096;
/// The weight of a model's share of the memory is from 1 / so much to so much: beyond, numbers would lose the smaller ones.
pub const SHARE_WEIGHT_MAX: f64 = 1e6;
/// Events that are remembered, for whoever begins to watch: of those that may come with every step, and of all others.
pub const EVENTS_KEPT: usize = 128;
/// Whoever watches at once, by `GET /v1/events`.
pub const WATCHERS_MAX: usize = 64;
/// Models, and streams, that one look at all of them shows, every second. Any one is seen by its name.
pub const WATCHED_MAX: usize = 256;
/// Bytes of all that one look shows: a view has its schema or spec, which may be large.
pub const LOOK_BYTES_MAX: usize = 8 << 20;
/// Stages of a plan.
pub const STAGES_MAX: usize = 64;
/// Workers of a plan.
pub const WORKERS_MAX: u64 = 64;
/// Steps that one update of a stage may wait for.
pub const ACCUMULATION_MAX: u64 = 4096;
/// Steps of which a stage learns one, at most.
pub const STRIDE_MAX: u64 = 4096;

/// Rows that a learner's buffer holds.
pub const REPLAY_BUFFER_ROWS_MAX: u64 = 1 << 24;
