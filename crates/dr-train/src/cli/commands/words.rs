//! What a network says of its inputs, in words and in JSON.

use super::predict::PredictArgs;
use crate::artifact::Description;
use crate::cli::CommandError;
use crate::config::task::{CLASSIFY, DETECT, SEGMENT};
use crate::detection::{Found, SHOWN};
use crate::files::at;
use crate::prediction::Prediction;
use crate::report::{NumberFormat, number};
use dr_runtime::arrays::Array;
use serde::Serialize;
use std::fmt::Write;
use std::fs;

/// Classes that are shown if nothing else is asked for.
pub(super) const TOP: usize = 5;

/// How what a network says is put into words.
pub(super) struct Words<'a> {
    args: &'a PredictArgs,
    /// Of the classes, as far as they have some.
    names: Vec<String>,
    /// How many there are, if the model says it.
    classes: usize,
    /// The least score of a box.
    pub threshold: f32,
}

/// What is said of an input, or of one of several items in it.
#[derive(Serialize)]
pub(super) struct Item {
    pub file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<usize>,
    pub precision: NumberFormat,
    #[serde(flatten)]
    pub answer: Answer,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The likeliest first.
    Classes(Vec<Class>),
    /// The best first.
    Boxes(Vec<Boxed>),
    /// One for each class, in their order.
    Shares(Vec<Share>),
    Outputs(Vec<Output>),
}

#[derive(Serialize)]
pub(super) struct Class {
    class: usize,
    name: String,
    probability: f64,
}

#[derive(Serialize)]
pub(super) struct Boxed {
    class: usize,
    name: String,
    score: f32,
    x0: f32,
    y0: f32,
    x1: f32,
    y1: f32,
}

#[derive(Serialize)]
pub(super) struct Share {
    class: usize,
    name: String,
    /// Of the picture's pixels.
    share: f64,
}

#[derive(Serialize)]
pub(super) struct Output {
    name: Option<String>,
    shape: Vec<usize>,
    /// Where in a single row the largest value is, and the value.
    #[serde(skip)]
    largest: Option<(usize, f32)>,
}

impl<'a> Words<'a> {
    /// Those for a model.
    ///
    /// # Errors
    /// Flags that it has no use for, names that cannot be read or are not as many as its classes.
    pub fn new(args: &'a PredictArgs, description: &Description) -> Result<Self, CommandError> {
        let Description { task, class_names, classes, .. } = description;
        let unused = [
            (
                "top",
                args.top.is_some() && matches!(task.as_str(), DETECT | SEGMENT),
                "one for classes of images",
            ),
            ("threshold", args.threshold.is_some() && task != DETECT, "a detector"),
            ("names", args.names.is_some() && !class_names.is_empty(), "one without names of its own"),
        ];
        if let Some((flag, _, expected)) = unused.into_iter().find(|(_, unused, _)| *unused) {
            let model = args.model.display();
            return Err(CommandError::new(format!(
                "--{flag}: `{model}` has no use for it: expected {expected}"
            )));
        }
        let names = match &args.names {
            Some(path) => {
                fs::read_to_string(path).map_err(at(path))?.trim_end().lines().map(str::to_owned).collect()
            }
            None => class_names.clone(),
        };
        let threshold = args.threshold.map_or(SHOWN, |threshold| threshold as f32);
        let mut words = Self { args, names, classes: *classes, threshold };
        match task.as_str() {
            SEGMENT => {
                words.check_names(classes.saturating_sub(1))?;
                words.names.insert(0, "background".to_owned());
            }
            CLASSIFY | DETECT => words.check_names(*classes)?,
            // How many classes there are is seen in the output.
            _ => {}
        }
        Ok(words)
    }

    /// Whether there are as many names in the file as classes.
    fn check_names(&self, expected: usize) -> Result<(), CommandError> {
        match &self.args.names {
            Some(path) if self.names.len() != expected => {
                let (path, found) = (path.display(), self.names.len());
                Err(CommandError::new(format!(
                    "--names `{path}`: {found} names: expected {expected}, one a class"
                )))
            }
            _ => Ok(()),
        }
    }

    /// The name of a class, or its number.
    fn name(&self, class: usize) -> String {
        self.names.get(class).cloned().unwrap_or_else(|| class.to_string())
    }

    /// What is said of an image.
    ///
    /// # Errors
    /// More or fewer names than classes.
    pub fn answer(&self, prediction: &Prediction) -> Result<Answer, CommandError> {
        Ok(match prediction {
            Prediction::Classes(all) => {
                self.check_names(all.len())?;
                let mut order: Vec<usize> = (0..all.len()).collect();
                order.sort_by(|&a, &b| all[b].total_cmp(&all[a]));
                let class = |class| Class { class, name: self.name(class), probability: all[class] };
                Answer::Classes(order.into_iter().take(self.args.top.unwrap_or(TOP)).map(class).collect())
            }
            Prediction::Boxes(found) => {
                let boxed = |&Found { rect: [x0, y0, x1, y1], class, score }: &Found| Boxed {
                    class,
                    name: self.name(class),
                    score,
                    x0,
                    y0,
                    x1,
                    y1,
                };
                Answer::Boxes(found.iter().map(boxed).collect())
            }
            Prediction::Pixels { classes, .. } => {
                let mut pixels = vec![0usize; self.classes];
                classes.iter().for_each(|&class| pixels[class] += 1);
                let share = |(class, count)| {
                    let share = count as f64 / classes.len() as f64;
                    Share { class, name: self.name(class), share }
                };
                Answer::Shares(pixels.into_iter().enumerate().map(share).collect())
            }
        })
    }

    /// What is said of outputs of which nothing else is known.
    ///
    /// # Errors
    /// Flags for classes.
    pub fn outputs(&self, names: &[&str], outputs: &[Array]) -> Result<Answer, CommandError> {
        let given = [("top", self.args.top.is_some()), ("names", self.args.names.is_some())];
        if let Some((flag, _)) = given.into_iter().find(|(_, given)| *given) {
            let model = self.args.model.display();
            let found = format!("--{flag}: the outputs of `{model}` are no classes of images");
            return Err(CommandError::new(format!("{found}: expected a network for classes")));
        }
        let output = |(at, output): (usize, &Array)| {
            let (shape, row) = (output.dims().to_vec(), output.floats().ok());
            let row = row.filter(|_| matches!(shape[..], [1, _]));
            let largest = row.and_then(|row| {
                let values = row.iter().copied().enumerate();
                values.max_by(|a, b| a.1.total_cmp(&b.1))
            });
            Output { name: names.get(at).map(|&name| name.to_owned()), shape, largest }
        };
        Ok(Answer::Outputs(outputs.iter().enumerate().map(output).collect()))
    }
}

impl Item {
    /// In words; boxes have at least the score `threshold`.
    pub fn text(&self, threshold: f32) -> String {
        let Self { file, item, precision, answer } = self;
        let item = item.map_or_else(String::new, |item| format!("[{item}]"));
        let mut text = format!("{file}{item} ({precision}):");
        // Writing to a string cannot fail.
        match answer {
            Answer::Classes(classes) => {
                for Class { name, probability, .. } in classes {
                    let _ = write!(text, "\n  {:>6} %  {name}", number(100.0 * probability, 2));
                }
            }
            Answer::Boxes(boxes) => {
                if boxes.is_empty() {
                    let _ = write!(text, "\n  no boxes with a score of at least {threshold}");
                }
                let width = boxes.iter().map(|of| of.name.chars().count()).max().unwrap_or_default();
                for Boxed { name, score, x0, y0, x1, y1, .. } in boxes {
                    let _ = write!(text, "\n  {score:.3}  {name:<width$}  {x0:.1} {y0:.1} {x1:.1} {y1:.1}");
                }
            }
            Answer::Shares(shares) => {
                for Share { name, share, .. } in shares.iter().filter(|of| of.share > 0.0) {
                    let _ = write!(text, "\n  {:>6} %  {name}", number(100.0 * share, 2));
                }
            }
            Answer::Outputs(outputs) => {
                for Output { name, shape, largest } in outputs {
                    let name = name.as_ref().map_or_else(String::new, |name| format!("{name} "));
                    let _ = write!(text, " {name}{shape:?}");
                    if let Some((largest, value)) = largest {
                        let _ = write!(text, ", largest {largest} ({value:.4})");
                    }
                }
            }
        }
        text + "\n"
    }
}
