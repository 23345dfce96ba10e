"""The least that Django needs: no database, no sessions, CSRF by cookie."""
import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

# In production: env = { DJANGO_SECRET_KEY = "${DJANGO_SECRET_KEY}" } in the pool.
# Every worker must have the same key, so it can't be made up at the import.
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "only-for-trying-out")
DEBUG = False
ALLOWED_HOSTS = os.environ.get("DJANGO_ALLOWED_HOSTS", "localhost,127.0.0.1,.localhost").split(",")
ROOT_URLCONF = "mysite.urls"
WSGI_APPLICATION = "mysite.wsgi.application"
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "DIRS": [BASE_DIR / "templates"],
    "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
}]
USE_TZ = True
