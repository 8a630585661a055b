"""A task of Django's own framework."""

try:
    from django.tasks import task
except ImportError:  # before Django 6
    from django_tasks import task


@task()
def pack(number: int) -> None: ...
