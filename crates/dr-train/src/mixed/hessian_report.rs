//! What `dr-train hessian` says.

use super::Traces;
use crate::report::{Bar, aligned, draw_bars, thousands};
use serde::{Deserialize, Serialize};

/// Traces with what they were measured on. Its JSON can be read as [`Traces`], too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HessianReport {
    /// The file, as the user named it.
    pub model: String,
    /// Whose training images they were.
    pub dataset: String,
    /// Images that there were to take.
    pub images: usize,
    /// Images for each direction.
    pub batch_size: usize,
    /// What decided the directions.
    pub seed: u64,
    /// The standard error that was asked for.
    pub tolerance: f64,
    /// What it ran on.
    pub device: String,
    /// How long it took.
    pub seconds: f64,
    /// The traces.
    #[serde(flatten)]
    pub traces: Traces,
}

impl HessianReport {
    /// As aligned text: a row for each layer, and how sure they are; `items` is what a direction looks at.
    #[must_use]
    pub fn table(&self, items: &str) -> String {
        let traces = &self.traces;
        let mut rows =
            vec![["layer", "weights", "average trace", "standard error"].map(str::to_owned).to_vec()];
        rows.extend(traces.layers.iter().map(|layer| {
            let numbers = [layer.average_trace, layer.standard_error].map(|number| format!("{number:.3e}"));
            [&[layer.layer.clone(), thousands(layer.parameters)], &numbers[..]].concat()
        }));
        let mut text = aligned(&rows);
        let Self { batch_size, tolerance, dataset, device, seconds, .. } = self;
        let percent = |part: f64| format!("{:.1} %", 100.0 * part);
        text += &format!("\nup to {} directions of {batch_size} {items} ({dataset}), ", traces.samples);
        text += &match traces.converged {
            true => format!("standard errors up to {}\n", percent(traces.uncertainty())),
            false => format!(
                "standard errors up to {}: not yet the {} of --tolerance\n",
                percent(traces.uncertainty()),
                percent(*tolerance)
            ),
        };
        if let Some(disagreement) = traces.disagreement() {
            text += &format!(
                "step 2^{:.0} of the weights' root mean square; with 4 times or a quarter of it the first direction differs by {}\n",
                traces.relative_step.log2(),
                percent(disagreement)
            );
        }
        text + &format!("device {device}, {seconds:.0} s\n")
    }

    /// As a picture, SVG.
    ///
    /// # Errors
    /// A message, if it cannot be drawn.
    pub fn svg(&self) -> Result<String, String> {
        let bars: Vec<Bar> = (self.traces.layers.iter())
            .map(|layer| Bar {
                name: layer.layer.clone(),
                value: layer.average_trace,
                error: layer.standard_error,
            })
            .collect();
        let title = format!("How the loss on {} bends along the weights of each layer", self.dataset);
        draw_bars(&title, "Average Hessian trace, with its standard error", &bars)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mixed::{LayerTrace, StepTrial};

    fn report() -> HessianReport {
        let layer = |layer: &str, parameters, average_trace, standard_error| LayerTrace {
            layer: layer.to_owned(),
            parameters,
            average_trace,
            standard_error,
        };
        let trial = |exponent, disagreement| StepTrial {
            relative_step: 0.5f64.powi(exponent),
            estimates: vec![2.0, 0.03],
            disagreement,
        };
        HessianReport {
            model: "m".to_owned(),
            dataset: "digits".to_owned(),
            images: 1000,
            batch_size: 64,
            seed: 1,
            tolerance: 0.05,
            device: "flex".to_owned(),
            seconds: 12.4,
            traces: Traces {
                layers: vec![layer("stem", 144, 2.0, 0.08), layer("head", 36_864, 0.03, 0.001)],
                samples: 24,
                converged: true,
                relative_step: 0.015625,
                steps: vec![trial(5, None), trial(6, Some(0.002)), trial(7, None)],
            },
        }
    }

    #[test]
    fn table() {
        let expected = "\
layer  weights  average trace  standard error
---------------------------------------------
stem       144        2.000e0        8.000e-2
head    36,864       3.000e-2        1.000e-3

up to 24 directions of 64 images (digits), standard errors up to 4.0 %
step 2^-6 of the weights' root mean square; with 4 times or a quarter of it the first direction differs by 0.2 %
device flex, 12 s
";
        assert_eq!(report().table("images"), expected);
        let mut stopped = report();
        stopped.tolerance = 0.01;
        stopped.traces.converged = false;
        assert!(
            stopped
                .table("images")
                .contains("standard errors up to 4.0 %: not yet the 1.0 % of --tolerance\n")
        );
    }

    #[test]
    fn the_json_is_read_again_also_as_traces_alone() {
        let json = serde_json::to_string(&report()).unwrap();
        assert_eq!(serde_json::from_str::<HessianReport>(&json).unwrap(), report());
        assert_eq!(serde_json::from_str::<Traces>(&json).unwrap(), report().traces);
        // What other programs write needs the layers only.
        let layer = r#"{"layer":"a","parameters":2,"average_trace":1,"standard_error":0}"#;
        let traces: Traces = serde_json::from_str(&format!(r#"{{"layers":[{layer}]}}"#)).unwrap();
        assert_eq!(traces.layers[0].parameters, 2);
    }

    #[test]
    fn the_picture_names_every_layer() {
        let svg = report().svg().unwrap();
        assert!(svg.contains("stem") && svg.contains("head") && svg.contains("1e-1"), "{svg}");
    }
}
