// SPDX-License-Identifier: GPL-2.0
//! The chart: what a COMM event costs with increasing numbers of listeners.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use protocol::bench::{LISTENER_COUNTS, Operation, Situation};

use super::figures::Figures;
use super::kernels::BenchKernel;

const SIZE: (u32, u32) = (800, 480);
const FONT: &str = "sans-serif";

/// The axis has no 0: lower costs are drawn at this value.
const LEAST: f64 = 1.0;

/// Draws the chart.
pub fn write(file: &Path, figures: &Figures) -> Result<()> {
    draw(file, figures).map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))
}

fn draw(file: &Path, figures: &Figures) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "Instructions of a COMM event, above those without listeners",
            (FONT, 20),
        )
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d((0.9f64..300.0).log_scale(), (LEAST..400_000.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("listeners")
        .y_desc("instructions (0 is drawn at 1)")
        .x_label_formatter(&|count| format!("{count:.0}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .light_line_style(WHITE.mix(0.0))
        .draw()?;
    let series = [
        (
            "stock, delivered",
            BenchKernel::Stock,
            Situation::Everything,
            RGBColor(200, 60, 40),
        ),
        (
            "ours, delivered",
            BenchKernel::Ours,
            Situation::Everything,
            RGBColor(30, 90, 180),
        ),
        (
            "ours, in batches",
            BenchKernel::Ours,
            Situation::Batch,
            RGBColor(20, 160, 190),
        ),
        (
            "stock, filtered out",
            BenchKernel::Stock,
            Situation::Filtered,
            RGBColor(230, 150, 40),
        ),
        (
            "ours, filtered out",
            BenchKernel::Ours,
            Situation::Filtered,
            RGBColor(40, 150, 90),
        ),
        (
            "ours, in one of so many containers",
            BenchKernel::Ours,
            Situation::Containers,
            RGBColor(130, 80, 160),
        ),
    ];
    for (name, kernel, situation, color) in series {
        let points: Vec<_> = LISTENER_COUNTS
            .into_iter()
            .filter_map(|count| {
                let cost = figures.cost(kernel, Operation::Comm, situation, count)?;
                Some((f64::from(count), cost.max(LEAST)))
            })
            .collect();
        let circles = points
            .iter()
            .map(|point| Circle::new(*point, 3, color.filled()));
        chart.draw_series(circles)?;
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    if let Some(cost) = figures.cost(BenchKernel::Ours, Operation::Comm, Situation::Ebpf, 1) {
        chart
            .draw_series([TriangleMarker::new((1.0, cost), 6, BLACK.filled())])?
            .label("eBPF, into a ring buffer")
            .legend(|(x, y)| TriangleMarker::new((x + 9, y), 6, BLACK.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 13))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::tests::line;
    use std::{env, fs, process};

    #[test]
    fn each_series_is_drawn() {
        let mut figures = Figures::default();
        let comm = Operation::Comm;
        let lines = [
            (Situation::NoListener, 0, 400.0),
            (Situation::Everything, 1, 1400.0),
            (Situation::Everything, 256, 90_000.0),
            (Situation::Batch, 1, 600.0),
            (Situation::Ebpf, 1, 800.0),
        ]
        .map(|(situation, count, value)| line(comm, situation, count, value));
        figures.add(BenchKernel::Ours, lines.to_vec());
        let file = env::temp_dir().join(format!("proc-events-chart.{}.svg", process::id()));
        write(&file, &figures).unwrap();
        let svg = fs::read_to_string(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert!(svg.starts_with("<svg"), "{svg}");
        // A circle and a point of the line for each figure, in the series' color.
        assert_eq!(svg.matches("fill=\"#1E5AB4\"").count(), 2, "{svg}");
        assert_eq!(svg.matches("fill=\"#14A0BE\"").count(), 1, "{svg}");
        assert!(svg.contains("eBPF"), "{svg}");
    }
}
