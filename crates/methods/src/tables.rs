//! What methods and published switches there are, for people to read.

/// What `candlewick methods` shows of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// As in `[method] name`.
    pub name: &'static str,
    /// What it does, in one line.
    pub what: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// Whether it reads the `[train]` table; some do with `[method.tuning]` alone, see [`MethodConfig::trains`](crate::MethodConfig::trains).
    pub trains: bool,
}

impl About {
    /// Whether features of past training images are part of its saved state, for people to read: such a method is no less a replay
    /// of the data than one that keeps images.
    pub fn features_kept(&self) -> &'static str {
        match self.name {
            "joint-linear" | "joint-ridge" | "knn" => "all",
            "ranpac" => "all while 2n ≤ M, then sums",
            _ => "none",
        }
    }

    /// Whether past training images themselves come again, for people to read.
    pub fn images_kept(&self) -> &'static str {
        match self.name {
            "joint" => "all",
            "promptfusion" | "proof" | "replay" => "as memory says",
            _ => "none",
        }
    }
}

/// All methods, in the order of their names.
pub const METHODS: &[About] = &[
    About {
        name: "aper",
        what: "the backbone tuned on the first task, then class means of frozen and tuned features",
        paper: "Zhou et al. 2023, Revisiting Class-Incremental Learning with Pre-Trained Models",
        trains: true,
    },
    About {
        name: "coda",
        what: "a prefix for each image, summed from components that attention weighs",
        paper: "Smith et al. 2023, CODA-Prompt: COntinual Decomposed Attention-based Prompting",
        trains: true,
    },
    About {
        name: "cofima",
        what: "slca whose network is averaged with the one before, by Fisher information or plainly (CoMA)",
        paper: "Marouf et al. 2024, Weighted Ensemble Models Are Strong Continual Learners",
        trains: true,
    },
    About {
        name: "continual-clip",
        what: "zero-shot by class names over the classes seen; nothing trains, the floor of CLIP methods",
        paper: "Thengane et al. 2022, CLIP model is an Efficient Continual Learner",
        trains: false,
    },
    About {
        name: "coop",
        what: "learned context in front of class names, for each task or class",
        paper: "Zhou et al. 2022, Learning to Prompt for Vision-Language Models",
        trains: true,
    },
    About {
        name: "dap",
        what: "prompts made for each image from the tokens of each block",
        paper: "Jung et al. 2023, Generating Instance-level Prompts for Rehearsal-free Continual Learning",
        trains: true,
    },
    About {
        name: "dualprompt",
        what: "prefixes shared by all tasks, and prefixes of each task, chosen per image by learned keys",
        paper: "Wang et al. 2022, DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning",
        trains: true,
    },
    About {
        name: "ease",
        what: "an adapter for each task, class means in the features of each",
        paper: "Zhou et al. 2024, Expandable Subspace Ensemble for Pre-Trained Model-Based Class-Incremental Learning",
        trains: true,
    },
    About {
        name: "esn",
        what: "class attention for each task by itself, energies brought to one level, a vote",
        paper: "Wang et al. 2023, Isolation and Impartial Aggregation: A Paradigm of Incremental Learning without Interference",
        trains: true,
    },
    About {
        name: "fecam",
        what: "nearest class mean by the covariance of each class",
        paper: "Goswami et al. 2023, FeCAM: Exploiting the Heterogeneity of Class Distributions in Exemplar-Free Continual Learning",
        trains: false,
    },
    About {
        name: "finetune",
        what: "backbone and head trained on from task to task; the floor of trained backbones",
        paper: "-",
        trains: true,
    },
    About {
        name: "joint",
        what: "backbone and head trained on all images seen; the ceiling of trained backbones",
        paper: "-",
        trains: true,
    },
    About {
        name: "joint-linear",
        what: "a linear head trained on all classes seen; the ceiling of linear heads",
        paper: "-",
        trains: true,
    },
    About {
        name: "joint-ridge",
        what: "ridge regression on all classes seen; the ceiling of statistics",
        paper: "-",
        trains: false,
    },
    About {
        name: "knn",
        what: "the nearest training features vote; memory grows with every image",
        paper: "-",
        trains: false,
    },
    About {
        name: "l2p",
        what: "a pool of prompt tokens, chosen per image by learned keys",
        paper: "Wang et al. 2022, Learning to Prompt for Continual Learning",
        trains: true,
    },
    About {
        name: "lae",
        what: "a module that learns and a slow copy that accumulates; both predict",
        paper: "Gao et al. 2023, A Unified Continual Learning Framework with General Parameter-Efficient Tuning",
        trains: true,
    },
    About {
        name: "linear",
        what: "a masked linear head on the frozen backbone; the floor of every table",
        paper: "-",
        trains: true,
    },
    About {
        name: "mos",
        what: "one adapter pulled towards what it was, its copies for each task, aligned heads",
        paper: "Sun et al. 2025, MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning",
        trains: true,
    },
    About {
        name: "nearest-mean",
        what: "class means of the frozen feature, nearest by Euclidean, cosine or Mahalanobis distance",
        paper: "Hayes and Kanan 2020, Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis",
        trains: false,
    },
    About {
        name: "promptfusion",
        what: "contexts and image prompts of a CLIP, prompts of a second backbone, and a weight or a gate between their logits",
        paper: "Chen et al. 2024, PromptFusion: Decoupling Stability and Plasticity for Continual Learning",
        trains: true,
    },
    About {
        name: "proof",
        what: "projections of both towers of a CLIP that grow with the tasks, attention across texts and prototypes",
        paper: "Zhou et al. 2025, Learning without Forgetting for Vision-Language Models",
        trains: true,
    },
    About {
        name: "random-prompt",
        what: "deep prompts that are drawn and never trained; the floor of deep prompts",
        paper: "-",
        trains: true,
    },
    About {
        name: "ranpac",
        what: "ridge regression on a random projection of the feature",
        paper: "McDonnell et al. 2023, RanPAC: Random Projections and Pre-trained Models for Continual Learning",
        trains: false,
    },
    About {
        name: "replay",
        what: "backbone and head trained on new images and on a memory of past ones",
        paper: "Chaudhry et al. 2019, On Tiny Episodic Memories in Continual Learning",
        trains: true,
    },
    About {
        name: "simplecil",
        what: "class means of the frozen feature, nearest by cosine",
        paper: "Zhou et al. 2023, Revisiting Class-Incremental Learning with Pre-Trained Models",
        trains: false,
    },
    About {
        name: "slca",
        what: "a slow backbone, then heads aligned on features drawn from class statistics",
        paper: "Zhang et al. 2023, SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained Model",
        trains: true,
    },
    About {
        name: "vpt",
        what: "free prompt tokens, shallow or deep, tuned on every task",
        paper: "Jia et al. 2022, Visual Prompt Tuning",
        trains: true,
    },
    About {
        name: "zscl",
        what: "both towers of a CLIP trained, held by a reference set, by where they were, and by averaging",
        paper: "Zheng et al. 2023, Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models",
        trains: true,
    },
];

/// What to write instead of a name that was one once.
pub fn replaced(name: &str) -> Option<&'static str> {
    match name {
        "aper-vpt" => Some(
            "name = \"aper\" with [method.tuning] kind = \"vpt-deep\" or \"vpt-shallow\"; length and init go there",
        ),
        _ => None,
    }
}

/// A published quirk that a recipe can ask for by name: what `candlewick methods --compat` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compat {
    /// As in `[method] name`.
    pub method: &'static str,
    /// The key of `[method]` and the value that departs.
    pub switch: &'static str,
    /// What it does.
    pub what: &'static str,
    /// Where it was published.
    pub source: &'static str,
}

/// All of them, by method and switch; [`MethodConfig::compat`](crate::MethodConfig::compat) gives those in use as `method.switch`.
pub const COMPAT: &[Compat] = &[
    Compat {
        method: "aper",
        switch: "tuning.init=zeros",
        what: "prompts start at 0: all tokens of a block stay alike for ever",
        source: "LAMDA-CL/LAMDA-PILOT:backbone/vpt.py",
    },
    Compat {
        method: "cofima",
        switch: "alignment.shrink=task-size",
        what: "a class's task is its number divided by the size of the present task: wrong, and above all tasks, where sizes differ",
        source: "IemProg/CoFiMA:models/cofima.py",
    },
    Compat {
        method: "cofima",
        switch: "compat=reference",
        what: "the new head is multiplied by its information, all but 0; that on old heads is of gradients left behind",
        source: "IemProg/CoFiMA:models/cofima.py",
    },
    Compat {
        method: "dap",
        switch: "batch_vote=always",
        what: "a test batch chooses one task together: predictions depend on the batch",
        source: "naver-ai/dap-cl:src/models/vit_dap/vit.py",
    },
    Compat {
        method: "dap",
        switch: "init=zeros",
        what: "the prompt maker starts at 0: all tokens of a block stay alike for ever",
        source: "naver-ai/dap-cl:src/models/vit_dap/vit.py",
    },
    Compat {
        method: "dap",
        switch: "mask_logits=true",
        what: "classes outside the chosen task cannot be predicted (ImageNet-R)",
        source: "naver-ai/dap-cl:src/models/vit_models.py",
    },
    Compat {
        method: "dualprompt",
        switch: "batch_vote=always",
        what: "a test batch chooses one task together: predictions depend on the batch",
        source: "google-research/l2p:models/prompt.py, JH-LEE-KR/dualprompt-pytorch:prompt.py",
    },
    Compat {
        method: "dualprompt",
        switch: "compat=reshape-bug",
        what: "keys, values and images mix in the prefixes of a batch: predictions depend on the batch",
        source: "JH-LEE-KR/dualprompt-pytorch:prompt.py, LAMDA-CL/LAMDA-PILOT:backbone/prompt.py",
    },
    Compat {
        method: "esn",
        switch: "energy=soft-minimum",
        what: "the anchor pulls at the smallest logits, the vote goes by the largest",
        source: "iamwangyabin/ESN:networks.py",
    },
    Compat {
        method: "esn",
        switch: "prompts_train=every-session",
        what: "prompts go on training, which moves what earlier sessions read",
        source: "iamwangyabin/ESN:trainer.py",
    },
    Compat {
        method: "fecam",
        switch: "compat=pilot",
        what: "correlates the rows of a covariance plus 100 I, which leaves it near I: all but nearest mean",
        source: "LAMDA-CL/LAMDA-PILOT:models/fecam.py",
    },
    Compat {
        method: "fecam",
        switch: "tuning.init=zeros",
        what: "prompts start at 0: all tokens of a block stay alike for ever",
        source: "LAMDA-CL/LAMDA-PILOT:backbone/vpt.py",
    },
    Compat {
        method: "l2p",
        switch: "batch_vote=always",
        what: "a batch chooses its prompts together, at test too: predictions depend on the batch",
        source: "google-research/l2p:models/prompt.py, JH-LEE-KR/l2p-pytorch:prompt.py",
    },
    Compat {
        method: "l2p",
        switch: "batch_vote=train",
        what: "a batch chooses its prompts together, in training alone",
        source: "google-research/l2p:models/prompt.py",
    },
    Compat {
        method: "lae",
        switch: "freeze_in=every-task",
        what: "the module stands still at first in the first task too",
        source: "LAMDA-CL/LAMDA-PILOT:models/lae.py",
    },
    Compat {
        method: "lae",
        switch: "module.init=zeros",
        what: "prompts start at 0: all tokens of a block stay alike for ever",
        source: "LAMDA-CL/LAMDA-PILOT:backbone/vpt.py",
    },
    Compat {
        method: "lae",
        switch: "offline_from=start",
        what: "the slow copy starts as drawn, before the first task, and stays near that",
        source: "LAMDA-CL/LAMDA-PILOT:models/lae.py",
    },
    Compat {
        method: "mos",
        switch: "alignment.shrink=task-size",
        what: "the task of an old class is taken to be the class by the size of the present task",
        source: "GengDavid/SLCA:models/slca.py",
    },
    Compat {
        method: "promptfusion",
        switch: "filler=x",
        what: "frozen embeddings of \"X\" stand between a context and its name",
        source: "HaoranChen/PromptFusion:prompt.py",
    },
    Compat {
        method: "promptfusion",
        switch: "gate.at_test=noisy",
        what: "the gate draws at test too",
        source: "HaoranChen/PromptFusion:train_pflite.py",
    },
    Compat {
        method: "promptfusion",
        switch: "gate.old=linear",
        what: "the gate is held to what it was without its tanh",
        source: "HaoranChen/PromptFusion:train_pflite.py",
    },
    Compat {
        method: "promptfusion",
        switch: "pixels=stabilizer",
        what: "the booster sees pixels with mean and deviation of the CLIP",
        source: "HaoranChen/PromptFusion:dataset.py, train_pf.py",
    },
    Compat {
        method: "promptfusion",
        switch: "weights=slot",
        what: "weights of the loss belong to places in the batch, those of new classes to all tasks",
        source: "HaoranChen/PromptFusion:model.py",
    },
    Compat {
        method: "proof",
        switch: "fusion=batch",
        what: "texts and prototypes are fused with the mean of a batch: predictions depend on the batch",
        source: "LAMDA-CL/PROOF:utils/inc_net.py",
    },
    Compat {
        method: "proof",
        switch: "old_text=trains",
        what: "projections of texts of earlier tasks go on training",
        source: "LAMDA-CL/PROOF:utils/inc_net.py",
    },
    Compat {
        method: "proof",
        switch: "test_image=raw",
        what: "images are not normalised at test, though they were in training",
        source: "LAMDA-CL/PROOF:models/proof.py",
    },
    Compat {
        method: "ranpac",
        switch: "compat=pilot",
        what: "scores are cosines: the norms of the ridge solution are thrown away",
        source: "LAMDA-CL/LAMDA-PILOT:models/ranpac.py, backbone/linears.py",
    },
    Compat {
        method: "ranpac",
        switch: "tuning.init=zeros",
        what: "prompts start at 0: all tokens of a block stay alike for ever",
        source: "LAMDA-CL/LAMDA-PILOT:backbone/vpt.py",
    },
    Compat {
        method: "slca",
        switch: "alignment.shrink=task-size",
        what: "a class's task is its number divided by the size of the present task: wrong, and above all tasks, where sizes differ",
        source: "GengDavid/SLCA:models/slca.py",
    },
    Compat {
        method: "vpt",
        switch: "init=zeros",
        what: "prompts start at 0: all tokens of a block stay alike for ever",
        source: "LAMDA-CL/LAMDA-PILOT:backbone/vpt.py",
    },
];
