"""What carries the program to others: index, images, services, workflows. Each is read as it is."""

import re
import runpy
import shlex
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import stream_rpn
from stream_rpn.commands.stream import stream_parser

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_yaml(path):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return list(yaml.safe_load_all((ROOT / path).read_text()))


class TestIndex:
    @pytest.fixture
    def description(self, monkeypatch):
        said = {}
        pytest.importorskip("setuptools", reason="setuptools is not installed")
        monkeypatch.setattr("setuptools.setup", said.update)
        runpy.run_path(str(ROOT / "setup.py"))
        assert said["long_description_content_type"] == "text/markdown"
        return said["long_description"]

    def test_links_and_pictures_are_addresses_of_files_that_are_there(self, description):
        links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", description)
        assert len(links) > 10
        kinds = {"!": "https://raw.githubusercontent.com/", "": "https://"}
        assert [link for mark, link in links if not link.startswith(kinds[mark])] == []
        ours = [link.partition("/main/")[2] for _, link in links if "/main/" in link]
        assert [place for place in ours if not (ROOT / place).exists()] == []

    def test_versions_agree(self):
        cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
        assert {PROJECT["version"], cited[1]} == {stream_rpn.__version__}


class TestHealthcheck:
    @pytest.fixture
    def port(self, request):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                known = self.headers["Authorization"] == "Bearer sesame"
                self.send_response(request.param if known and self.path == "/healthz" else 401)
                self.end_headers()
                self.wfile.write(b"said")

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()
        server.server_close()

    def run(self, port, token="sesame"):
        return subprocess.run(
            [sys.executable, str(DEPLOY / "healthcheck.py"), str(port)],
            env={"STREAM_RPN_TOKEN": token},
            capture_output=True,
            text=True,
        )

    @pytest.mark.parametrize("port", [200], indirect=True)
    def test_well(self, port):
        assert self.run(port).returncode == 0

    @pytest.mark.parametrize("port", [503], indirect=True)
    def test_stalled(self, port):
        asked = self.run(port)
        assert (asked.returncode, asked.stderr) == (1, "503: said\n")

    @pytest.mark.parametrize("port", [200], indirect=True)
    def test_another_token(self, port):
        asked = self.run(port, "guess")
        assert (asked.returncode, asked.stderr) == (1, "401: said\n")

    def test_a_run_that_does_not_serve_is_well(self):
        asked = self.run(1)
        assert asked.returncode == 0
        assert "nothing listens" in asked.stdout


class TestDockerfile:
    STAGES = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]

    @pytest.mark.parametrize("target", ["cpu", "cuda"])
    def test_an_image_runs_without_rights(self, target):
        (stage,) = [stage for stage in self.STAGES if stage.startswith(f"base AS {target}\n")]
        assert stage.rstrip().endswith("USER 10001")
        assert "HEALTHCHECK" in next(stage for stage in self.STAGES if " AS base\n" in stage)

    def test_what_is_copied_reaches_the_build(self):
        """All that setuptools needs and what stages copy is excepted from .dockerignore."""
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        excepted = {line[1:] for line in lines if line.startswith("!")}
        assert [place for place in excepted if not (ROOT / place).exists()] == []
        copied = re.findall(r"^COPY (?:--chmod=\d+ )?(\S+) /", "".join(self.STAGES), re.MULTILINE)
        assert copied == ["deploy/healthcheck.py"]
        assert {*copied, "pyproject.toml", "setup.py", "README.md", "LICENSE"} <= excepted
        assert {"stream_rpn", "kernels"} <= excepted

    def test_extras_are_ours(self):
        named = set(re.findall(r"EXTRAS=([\w,]+)", "".join(self.STAGES)))
        extras = {extra for names in named for extra in names.split(",")}
        assert extras <= set(PROJECT["optional-dependencies"])
        assert "serve" in extras


def commands_deployed():
    (compose,) = read_yaml("deploy/compose.yaml")
    deployment, _ = read_yaml("deploy/kubernetes.yaml")
    unit = (DEPLOY / "stream-rpn.service").read_text()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (line,) = re.findall(r"^ExecStart=\S+/stream-rpn (.*)$", unit, re.MULTILINE)
    return [compose["services"]["stream-rpn"]["command"], container["args"], shlex.split(line)]


def test_what_is_deployed_are_commands_of_ours():
    for command in commands_deployed():
        arguments = stream_parser().parse_args(command)
        assert arguments.serve == "0.0.0.0:8000"
        assert all(source.startswith("@") for source in arguments.sources)


def test_compose_has_the_files_that_it_mounts():
    (compose,) = read_yaml("deploy/compose.yaml")
    prometheus = compose["services"]["prometheus"]
    files = [mount.split(":")[0] for mount in prometheus["volumes"] if mount.startswith("./")]
    assert files == ["./prometheus.yml"]
    (scraped,) = read_yaml("deploy/prometheus.yml")[0]["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["stream-rpn:8000"]}]
    secret = Path(scraped["authorization"]["credentials_file"]).name
    assert compose["secrets"][secret] == {"environment": "STREAM_RPN_TOKEN"}


class TestWorkflows:
    @pytest.fixture(params=["tests", "docs"])
    def steps(self, request):
        (workflow,) = read_yaml(f".github/workflows/{request.param}.yml")
        return [step for job in workflow["jobs"].values() for step in job["steps"]]

    def test_what_they_run_is_there(self, steps):
        rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        said = "\n".join(step.get("run", "") for step in steps)
        made = re.findall(r"^make ([\w-]+)$", said, re.MULTILINE)
        assert made
        assert set(made) <= set(rules)
        assert [
            file for file in re.findall(r"tests/\w+\.py", said) if not (ROOT / file).exists()
        ] == []

    def test_they_try_the_oldest_and_the_newest_python(self):
        (workflow,) = read_yaml(".github/workflows/tests.yml")
        tried = workflow["jobs"]["installed"]["strategy"]["matrix"]["python-version"]
        said = re.findall(r":: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
        assert tried == [said[0], said[-1]]
        assert PROJECT["requires-python"] == f">={said[0]}"


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_an_issue_template_asks(name):
    (form,) = read_yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert all(field["attributes"]["label"] for field in form["body"])
