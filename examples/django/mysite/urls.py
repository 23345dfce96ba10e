from django.urls import path

from . import views

urlpatterns = [
    path("", views.home, name="home"),
    path("environ", views.environ, name="environ"),
    path("count", views.count, name="count"),
]
