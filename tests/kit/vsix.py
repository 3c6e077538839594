"""An extension of VS Code, as a file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path


def extension(path: Path) -> Path:
    """The smallest extension that VS Code installs."""
    package = {"name": "tiny", "publisher": "mlbox-lab", "version": "0.0.7", "engines": {"vscode": "*"}}
    manifest = """<?xml version="1.0" encoding="utf-8"?>
<PackageManifest Version="2.0.0" xmlns="http://schemas.microsoft.com/developer/vsx-schema/2011">
 <Metadata><Identity Language="en-US" Id="tiny" Version="0.0.7" Publisher="mlbox-lab"/><DisplayName>tiny</DisplayName>
 <Description xml:space="preserve">tiny</Description></Metadata>
 <Installation><InstallationTarget Id="Microsoft.VisualStudio.Code"/></Installation><Dependencies/>
 <Assets><Asset Type="Microsoft.VisualStudio.Code.Manifest" Path="extension/package.json" Addressable="true"/></Assets>
</PackageManifest>"""
    types = """<?xml version="1.0" encoding="utf-8"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
 <Default Extension=".json" ContentType="application/json"/><Default Extension=".vsixmanifest" ContentType="text/xml"/>
</Types>"""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("extension/package.json", json.dumps(package))
        file.writestr("extension.vsixmanifest", manifest)
        file.writestr("[Content_Types].xml", types)
    return path
