//! What the code of papers feeds its network, by the papers' names.
//!
//! The same weights on other pixels give other numbers: with a frozen ViT, mean and standard deviation alone made the difference
//! between 57 and 38 % on ImageNet-C (`mr-eggplant/FOA`, issue 2).

/// A preprocessing with a name.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// As recipes write it.
    pub name: &'static str,
    /// Who feeds it to what.
    pub what: &'static str,
    /// The keys of `[preprocess]`.
    toml: &'static str,
}

/// All of them.
pub const PRESETS: [Preset; 10] = [
    Preset {
        name: "pilot",
        what: "LAMDA-CL/LAMDA-PILOT and APER: all ViT methods but CODA-Prompt; pixels in [0, 1]",
        toml: PILOT,
    },
    Preset {
        name: "ranpac",
        what: "McDonnell-Research-Lab/RanPAC, all data sets but CIFAR: as pilot",
        toml: PILOT,
    },
    Preset {
        name: "ranpac-cifar",
        what: "RanPAC on CIFAR: tested at 224 without a margin",
        toml: "resize = 224\ncrop = 224\ninterpolation = \"bicubic\"\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n\
               train = \"random-resized-crop\"\nscale = [0.05, 1.0]\nratio = [0.75, 1.3333333333333333]\nflip = true\n\
               train_interpolation = \"bilinear\"",
    },
    Preset {
        name: "coda",
        what: "GT-RIPL/CODA-Prompt on ImageNet-R, and PILOT's CODA-Prompt; pixels in [0, 1]",
        toml: BILINEAR,
    },
    Preset {
        name: "coda-cifar",
        what: "CODA-Prompt on CIFAR: tested at 224 without a margin",
        toml: "resize = 224\ncrop = 224\ninterpolation = \"bilinear\"\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n\
               train = \"random-resized-crop\"\nscale = [0.08, 1.0]\nratio = [0.75, 1.3333333333333333]\nflip = true",
    },
    Preset {
        name: "lae",
        what: "gqk/LAE; pixels in [0, 1]",
        toml: BILINEAR,
    },
    Preset {
        name: "slca",
        what: "GengDavid/SLCA and IemProg/CoFiMA on ImageNet-R; ImageNet's mean and deviation",
        toml: "resize = 256\ncrop = 224\ninterpolation = \"bicubic\"\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n\
               train = \"random-resized-crop\"\nscale = [0.08, 1.0]\nratio = [0.75, 1.3333333333333333]\nflip = true",
    },
    Preset {
        name: "slca-cifar",
        what: "SLCA and CoFiMA on CIFAR: brightness is varied, CIFAR's mean and deviation",
        toml: "resize = 256\ncrop = 224\ninterpolation = \"bicubic\"\nmean = [0.5071, 0.4867, 0.4408]\n\
               std = [0.2675, 0.2565, 0.2761]\ntrain = \"random-resized-crop\"\nscale = [0.08, 1.0]\n\
               ratio = [0.75, 1.3333333333333333]\nflip = true\nbrightness = 0.24705882352941178",
    },
    Preset {
        name: "clip",
        what: "openai/CLIP and PROOF's evaluation; CLIP's mean and deviation, no augmentation",
        toml: "resize = 224\ncrop = 224\ninterpolation = \"bicubic\"\nmean = [0.48145466, 0.4578275, 0.40821073]\n\
               std = [0.26862954, 0.26130258, 0.27577711]",
    },
    Preset {
        name: "timm",
        what: "what timm's augreg ViTs were trained for: mean and deviation 0.5, no augmentation",
        toml: "resize = 248\ncrop = 224\ninterpolation = \"bicubic\"\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]",
    },
];

const PILOT: &str = "resize = 256\ncrop = 224\ninterpolation = \"bicubic\"\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n\
    train = \"random-resized-crop\"\nscale = [0.05, 1.0]\nratio = [0.75, 1.3333333333333333]\nflip = true\n\
    train_interpolation = \"bilinear\"";

const BILINEAR: &str = "resize = 256\ncrop = 224\ninterpolation = \"bilinear\"\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n\
    train = \"random-resized-crop\"\nscale = [0.08, 1.0]\nratio = [0.75, 1.3333333333333333]\nflip = true";

impl Preset {
    /// By name.
    pub fn find(name: &str) -> Option<Self> {
        PRESETS.into_iter().find(|preset| preset.name == name)
    }

    /// Its keys as a recipe would have them.
    pub fn keys(&self) -> &'static str {
        self.toml
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::Preprocess;

    #[test]
    fn every_preset_holds_and_none_is_there_twice() {
        let mut names = Vec::new();
        for preset in PRESETS {
            let settings: Preprocess = toml::from_str(preset.keys()).unwrap();
            assert_eq!(
                settings.check().unwrap().size(),
                (224, 224),
                "{}",
                preset.name
            );
            assert!(!names.contains(&preset.name));
            names.push(preset.name);
        }
        assert!(Preset::find("pilot").is_some() && Preset::find("Pilot").is_none());
    }
}
