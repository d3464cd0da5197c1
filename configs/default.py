"""Every setting of a run, with its default; other configs start from here.

    python -m tqa_jax.main --config=configs/default.py

The `synced` network at the size of its preset, width 256, with GradNorm. `gradnorm.py`
is the small one for two CPU cores.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration."""
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.data = data = ml_collections.ConfigDict()
    data.path = ""  # Folder of a data set; empty for the demo set.
    data.demo_clips = 240  # Size of the demo set.
    data.max_frames = 150  # Longest window, at 25 frames a second; 6 s.
    data.memory_gb = 4.0  # A split that takes more is streamed; loading peaks at 3x.

    config.preprocess = preprocess = ml_collections.ConfigDict()
    preprocess.pca = ml_collections.ConfigDict(
        {"visual": 100, "audio": 200, "keypoints": 50}
    )  # Width after PCA; narrower modalities are passed through.
    preprocess.winsorise = 0.0  # Interquartile ranges; 1.5 for Tukey's fences, 0 off.

    config.model = model = ml_collections.ConfigDict()
    model.preset = "synced"  # advanced, synced, optimized_mtl.
    model.dtype = "float32"  # Of activations: float32, bfloat16, float16.
    model.remat = ""  # "nothing_saveable" recomputes activations to save memory.
    model.modalities = ()  # Empty for all that the data set has.
    # None means what the preset says; see tqa_jax/models/evaluator.py for each.
    model.width = config_dict.placeholder(int)
    model.encoder = config_dict.placeholder(str)
    model.depth = config_dict.placeholder(int)
    model.dropout = config_dict.placeholder(float)
    model.topology = config_dict.placeholder(str)
    model.positions = config_dict.placeholder(bool)
    model.modality_embeddings = config_dict.placeholder(bool)
    model.temporal_layers = config_dict.placeholder(int)
    model.temporal_heads = config_dict.placeholder(int)
    model.temporal_ffn = config_dict.placeholder(int)  # 0 for 4 * width.
    model.temporal_dropout = config_dict.placeholder(float)
    model.temporal_window = config_dict.placeholder(int)  # Frames; 0 for all.
    model.cross_layers = config_dict.placeholder(int)
    model.attention_dropout = config_dict.placeholder(float)
    model.pooling = config_dict.placeholder(str)
    model.paths = config_dict.placeholder(str)
    model.gate = config_dict.placeholder(bool)
    model.fusion_layers = config_dict.placeholder(int)
    model.fusion_heads = config_dict.placeholder(int)
    model.fusion_ffn = config_dict.placeholder(int)
    model.fusion_dropout = config_dict.placeholder(float)
    model.modality_dropout = config_dict.placeholder(float)
    model.head_hidden = config_dict.placeholder(tuple)
    model.head_dropout = config_dict.placeholder(float)
    model.head_style = config_dict.placeholder(str)
    model.head_activation = config_dict.placeholder(str)

    config.weighting = weighting = ml_collections.ConfigDict()
    weighting.name = "gradnorm"  # A file of tqa_jax/weighting/; its section is below.
    weighting.shared = ""  # Path of W, as "path_a_contract/kernel"; empty for the last.
    weighting.fixed = ml_collections.ConfigDict({"values": {}})  # By task, else 1.
    weighting.learned = ml_collections.ConfigDict(
        {"learning_rate": 1e-3, "epsilon": 1e-4, "normalise": True}
    )
    weighting.uncertainty = ml_collections.ConfigDict(
        {"learning_rate": 1e-3, "limit": 5.0}
    )
    weighting.gradnorm = ml_collections.ConfigDict(
        {
            "alpha": 1.5,
            "learning_rate": 0.025,
            "floor": 1e-3,
            "log_domain": True,
            "initial_steps": 5,
        }
    )
    weighting.gradnorm_simple = ml_collections.ConfigDict(
        {"alpha": 1.5, "step": 0.01, "floor": 1e-3, "ceiling": 100.0}
    )

    weighting.dwa = ml_collections.ConfigDict({"temperature": 2.0})
    weighting.famo = ml_collections.ConfigDict({"learning_rate": 0.025, "decay": 1e-3})
    weighting.imtl_l = ml_collections.ConfigDict({"learning_rate": 1e-3, "limit": 5.0})
    weighting.stch = ml_collections.ConfigDict({"mu": 1.0})

    config.surgery = surgery = ml_collections.ConfigDict()
    surgery.name = ""  # A file of tqa_jax/surgery/; empty adds the gradients up.
    surgery.cagrad = ml_collections.ConfigDict({"c": 0.4})

    config.loss = loss = ml_collections.ConfigDict()
    loss.l1_weight = 0.1  # Factor on |error| beside error^2, as on a 1-5 scale.
    loss.label_smoothing = 0.0  # Share of the training mean in each label.

    config.consistency = consistency = ml_collections.ConfigDict()
    consistency.mode = "corr"  # std, corr, cov, corr_target.
    consistency.weight = 0.05  # 0 is off.
    consistency.exclude = ("overall",)  # Tasks that it does not look at.

    config.optim = optim = ml_collections.ConfigDict()
    optim.learning_rate = 1e-3  # Peak.
    optim.schedule = "warmup_cosine"  # warmup_cosine, adaptive_cosine, constant.
    optim.warmup_steps = 20  # At most a tenth of the run's.
    optim.end_learning_rate = 1e-6
    optim.stretch = 0.1  # adaptive_cosine: lengthening of the period at a stall.
    optim.plateau_patience = 3  # Validations without improvement that make a stall.
    optim.plateau_drop = 1.0  # Factor on a head's rate when its task stalls; 1 is off.
    optim.task_factors = ml_collections.ConfigDict()  # On a head's rate, by task.
    optim.weight_decay = 1e-2
    optim.clip_norm = 1.0
    optim.beta1 = 0.9
    optim.beta2 = 0.999

    config.train = train = ml_collections.ConfigDict()
    train.epochs = 30
    # Finished run whose best parameters and preprocessing this one starts from.
    train.start_from = ""
    train.members = 1  # Networks of an ensemble: seeds trained as one program.
    train.batch_size = 32
    train.accumulation = (
        1  # Micro-batches; as the whole batch, but for dropout's draws.
    )
    train.patience = 10  # Epochs without a better validation before stopping.
    train.min_improvement = 0.0
    train.select_metric = "srcc"  # Of the best epoch: srcc, plcc, ccc, loss.
    train.select_weights = ml_collections.ConfigDict()  # By task; empty for the mean.
    train.checkpoint_every = 100  # Steps; two minutes save as well.
    train.max_skipped = 20  # Non-finite steps in a row before training stops.
    train.log_every = 1  # Steps.

    config.evaluate = evaluate = ml_collections.ConfigDict()
    evaluate.resamples = 200  # Bootstrap resamples of sources.
    evaluate.dropout_draws = 16  # For the spread of a score; unused by an ensemble.

    config.log = log = ml_collections.ConfigDict()
    log.tensorboard = False  # Also write TensorBoard events; needs the logs extra.
    return config
