//! What a run reports: `report.json`, a table and `report.svg`.

mod bars;
mod draw;
mod format;
mod front;
mod plot;
mod results;
mod table;

pub(crate) use bars::{Bar, draw as draw_bars};
pub(crate) use front::{Mark, draw as draw_front};
pub(crate) use table::{aligned, thousands};

pub use draw::{colour, draw_boxes, enlarge, overlay, save_grid};
pub use format::NumberFormat;
pub use results::{
    CurvePoint, EpochRecord, Measured, PrecisionResult, Report, ReportError, SingleResult, TrainPhase,
};
