"""The recipe: one frozen pydantic model per stage, an unknown key is an error, units in the names.

`tutelage init` writes a commented one, `tutelage validate RECIPE` checks it and `tutelage validate --schema`
prints the JSON schema.
"""

from tutelage.configs.schema.data import (
    ClassificationTask,
    Columns,
    DataConfig,
    FileData,
    GenerationTask,
    Source,
    SpamAssassinData,
    Task,
)
from tutelage.configs.schema.engines import (
    EngineConfig,
    OpenAIConfig,
    TransformersConfig,
    VllmConfig,
)
from tutelage.configs.schema.privacy import (
    FormalPrivacy,
    PrivacyConfig,
    PrivateEvolutionPrivacy,
    PrivatePredictionPrivacy,
    ScreenConfig,
    Screened,
)
from tutelage.configs.schema.recipe import (
    AggregateConfig,
    FederationConfig,
    Recipe,
    SiloKeys,
)
from tutelage.configs.schema.section import (
    Section,
    not_a_boolean,
)
from tutelage.configs.schema.silo import (
    SiloConfig,
)
from tutelage.configs.schema.structure import (
    Structure,
)
from tutelage.configs.schema.student import (
    AttackConfig,
    AttackName,
    DpoConfig,
    GateConfig,
    GateRule,
    MeasureConfig,
    StudentConfig,
)
from tutelage.configs.schema.teach import (
    CascadeRoute,
    LabelRoute,
    SiloRoute,
    SkillRoute,
    TeachConfig,
    TeacherConfig,
)

__all__ = [
    "AggregateConfig",
    "AttackConfig",
    "AttackName",
    "CascadeRoute",
    "ClassificationTask",
    "Columns",
    "DataConfig",
    "DpoConfig",
    "EngineConfig",
    "FederationConfig",
    "FileData",
    "FormalPrivacy",
    "GateConfig",
    "GateRule",
    "GenerationTask",
    "LabelRoute",
    "MeasureConfig",
    "OpenAIConfig",
    "PrivacyConfig",
    "PrivateEvolutionPrivacy",
    "PrivatePredictionPrivacy",
    "Recipe",
    "ScreenConfig",
    "Screened",
    "Section",
    "SiloConfig",
    "SiloKeys",
    "SiloRoute",
    "SkillRoute",
    "Source",
    "SpamAssassinData",
    "Structure",
    "StudentConfig",
    "Task",
    "TeachConfig",
    "TeacherConfig",
    "TransformersConfig",
    "VllmConfig",
    "not_a_boolean",
]
