import time

from django.http import JsonResponse, StreamingHttpResponse
from django.shortcuts import render


def home(request):
    """A form, which Django protects against forgery."""
    return render(request, "home.html", {"name": request.POST.get("name", "")})


def environ(request):
    """What the gateway interface says of this request."""
    return JsonResponse({k: v for k, v in request.environ.items() if isinstance(v, str)})


def count(request):
    """An answer that goes out as it is made."""
    def lines():
        for n in range(1, 6):
            yield f"{n}\n"
            time.sleep(0.2)

    response = StreamingHttpResponse(lines(), content_type="text/plain")
    response["X-Accel-Buffering"] = "no"  # nginx collects an answer unless it is told not to
    return response
