//! The few shapes of SVG that a chart is made of.

/// A drawing. Coordinates are in pixels from its upper left corner.
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// Where a text is, by its position.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
}

/// How a text looks.
#[derive(Clone, Copy)]
pub(super) struct Font {
    pub size: f64,
    pub bold: bool,
    pub colour: &'static str,
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    pub(super) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, font: Font, text: &str) {
        let Font { size, bold, colour } = font;
        let weight = if bold { 600 } else { 400 };
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
        };
        let text = escaped(text);
        self.push(&format!(
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" font-weight="{weight}" fill="{colour}" text-anchor="{anchor}">{text}</text>"#
        ));
    }

    pub(super) fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), look: &str) {
        self.push(&format!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" {look}/>"#
        ));
    }

    pub(super) fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), look: &str) {
        self.push(&format!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" {look}/>"#
        ));
    }

    pub(super) fn circle(&mut self, (x, y): (f64, f64), radius: f64, look: &str) {
        self.push(&format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" {look}/>"#));
    }

    fn push(&mut self, element: &str) {
        self.body.push_str("  ");
        self.body.push_str(element);
        self.body.push('\n');
    }

    /// The whole file. `title` and `description` are for who can't see it.
    pub(super) fn finish(self, title: &str, description: &str) -> String {
        let Self { width, height, body } = self;
        let (title, description) = (escaped(title), escaped(description));
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-labelledby="title desc" font-family="system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif">
  <title id="title">{title}</title>
  <desc id="desc">{description}</desc>
{body}</svg>
"#
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_can_hold_what_is_markup() {
        let mut svg = Svg::new(10.0, 20.0);
        let font = Font { size: 12.0, bold: false, colour: "#000" };
        svg.text((1.0, 2.0), Anchor::Middle, font, "a < b & \"c\"");
        let file = svg.finish("<title>", "d");
        assert!(file.contains(">a &lt; b &amp; &quot;c&quot;</text>"), "{file}");
        assert!(file.contains("&lt;title&gt;"), "{file}");
    }
}
