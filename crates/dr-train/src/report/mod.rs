//! What a run reports: `report.json`, a table and `report.svg`.

#[cfg(feature = "program")]
mod bars;
#[cfg(feature = "program")]
mod draw;
mod format;
#[cfg(feature = "program")]
mod front;
#[cfg(feature = "program")]
mod plot;
mod results;
#[cfg(feature = "program")]
mod table;

#[cfg(feature = "program")]
pub(crate) use {
    bars::{Bar, draw as draw_bars},
    front::{Mark, draw as draw_front},
    table::{aligned, few, thousands},
};

#[cfg(feature = "program")]
pub use draw::{colour, draw_boxes, enlarge, overlay, save_grid, save_mask};
pub use format::NumberFormat;
pub(crate) use format::{UNDEFINED, number};
pub use results::{
    Agreement, CurvePoint, EpochRecord, Measured, PrecisionResult, REPORT_FILE, Report, ReportError,
    SingleResult, TrainPhase,
};
