"""Django with its ORM and its psycopg pool, under gunicorn's threads: what its community runs when views are sync.

In one file, as Django allows. One worker with 8 threads; the pool (`OPTIONS["pool"]`) has 8 connections, one for each
thread, where `True` would give 4. `server_side_binding` is on, so that psycopg prepares statements. The only middleware
is CommonMiddleware, sessions and CSRF are of no use to such an API. Views return JsonResponse, bodies are validated by
forms, both Django's own and lighter than the REST framework.
"""

import json
from typing import Any
from urllib.parse import unquote, urlsplit

from django import forms
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import IntegrityError, models
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from tests.bench.peers.models import DATABASE_URL, hasher

server = urlsplit(DATABASE_URL)

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    APPEND_SLASH=False,
    USE_TZ=True,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": server.hostname,
            "PORT": server.port,
            "NAME": server.path[1:],
            "USER": server.username,
            "PASSWORD": unquote(server.password or ""),
            "OPTIONS": {"pool": {"min_size": 8, "max_size": 8}, "server_side_binding": True},
        }
    },
)
application = get_wsgi_application()


class User(models.Model):
    id = models.BigAutoField(primary_key=True)
    fname = models.TextField()
    lname = models.TextField()
    email = models.TextField()
    password_hash = models.TextField()
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(db_default=Now())

    class Meta:
        app_label = "users"
        db_table = "user"
        managed = False

    def __str__(self) -> str:
        return f"{self.fname} {self.lname}"


COLUMNS = ("id", "fname", "lname", "email", "created_at", "updated_at")


class UserChange(forms.Form):
    fname = forms.CharField(max_length=100, required=False)
    lname = forms.CharField(max_length=100, required=False)
    email = forms.EmailField(required=False)


class NewUser(forms.Form):
    fname = forms.CharField(max_length=100)
    lname = forms.CharField(max_length=100)
    email = forms.EmailField()
    password = forms.CharField(min_length=8, max_length=128, strip=False)


class Page(forms.Form):
    limit = forms.IntegerField(min_value=1, max_value=1000, required=False)
    after = forms.IntegerField(min_value=0, required=False)


def one(request: HttpRequest, user_id: int) -> HttpResponse:
    if request.method == "PATCH":
        return change(request, user_id)
    row = User.objects.filter(pk=user_id).values(*COLUMNS).first()
    return JsonResponse(public(row)) if row else HttpResponse(status=404)


def change(request: HttpRequest, user_id: int) -> HttpResponse:
    form = UserChange(json.loads(request.body))
    if not form.is_valid():
        return JsonResponse(form.errors, status=422)
    given = {name: value for name, value in form.cleaned_data.items() if value}
    User.objects.filter(pk=user_id).update(**given, updated_at=Now())
    row = User.objects.filter(pk=user_id).values(*COLUMNS).first()
    return JsonResponse(public(row)) if row else HttpResponse(status=404)


def all_of_them(request: HttpRequest) -> HttpResponse:
    return create(request) if request.method == "POST" else page(request)


def page(request: HttpRequest) -> HttpResponse:
    form = Page(request.GET)
    if not form.is_valid():
        return JsonResponse(form.errors, status=422)
    limit, after = form.cleaned_data["limit"] or 100, form.cleaned_data["after"] or 0
    rows = User.objects.filter(id__gt=after).order_by("id").values(*COLUMNS)[:limit]
    return JsonResponse([public(row) for row in rows], safe=False)


def create(request: HttpRequest) -> HttpResponse:
    form = NewUser(json.loads(request.body))
    if not form.is_valid():
        return JsonResponse(form.errors, status=422)
    given = form.cleaned_data
    password_hash = hasher.hash(given.pop("password"))
    try:
        user = User.objects.create(**given, password_hash=password_hash)
    except IntegrityError:
        return HttpResponse(status=409)
    return JsonResponse(public({name: getattr(user, name) for name in COLUMNS}), status=201)


def public(row: dict[str, Any]) -> dict[str, Any]:
    row["created_at"] = row["created_at"].isoformat()  # Django's own encoder cuts the microseconds off
    row["updated_at"] = row["updated_at"].isoformat()
    return row


urlpatterns = [path("users/<int:user_id>", one), path("users", all_of_them)]
