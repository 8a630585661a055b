"""The settings of the example, from environment variables that begin with COMPLETIONS_.

COMPLETIONS_SCHEDULE='[0.5, 1]' COMPLETIONS_MAX_AGE=10 makes of hours seconds. The times are seconds.
"""

from pydantic import Field, PositiveFloat, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from async_task import ConfigurationError

HOUR = 3600.0


class Settings(BaseSettings):
    """The defaults are those for a real provider, which takes hours."""

    model_config = SettingsConfigDict(env_prefix="COMPLETIONS_")

    database_url: str = "sqlite:///completions.sqlite"
    provider_url: str = "http://127.0.0.1:8766"
    provider_key: SecretStr = SecretStr("sk-example")
    lease: PositiveFloat = 5
    schedule: tuple[PositiveFloat, ...] = (60, 120, 300, 600, 1800)
    """The waits between polls; the last one repeats."""
    max_age: PositiveFloat = 26 * HOUR
    """A batch that has not ended after this time is given up."""
    grace: PositiveFloat = 300
    resume_every: PositiveFloat = 300
    expire_every: PositiveFloat = HOUR
    submit_at: str = "22:00"
    """When the prompts of the day are submitted, in `submit_zone`."""
    submit_zone: str = "Europe/London"
    submit_every: PositiveFloat | None = None
    """For a demo: submit them at this interval instead."""
    batch_size: int = Field(default=1_000, ge=1)
    """The maximum of prompts of one batch."""


def read() -> Settings:
    """The settings of this process. Raises ConfigurationError with the name of a variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigurationError(f"COMPLETIONS_{str(wrong['loc'][0]).upper()}: {wrong['msg']}") from None
    except SettingsError:
        raise ConfigurationError("COMPLETIONS_SCHEDULE: takes JSON, such as [60, 120, 300]") from None


settings = read()
