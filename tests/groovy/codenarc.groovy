// CodeNarc's rules for groovy_scripts: every set of rules, less what each line gives a reason for.
ruleset {
    ruleset('rulesets/basic.xml')
    ruleset('rulesets/braces.xml')
    ruleset('rulesets/comments.xml') {
        // Javadoc where it says more than the name does.
        exclude 'ClassJavadoc'
        exclude 'JavadocEmptyFirstLine'
    }
    ruleset('rulesets/concurrency.xml') {
        // Waiting for another process has no lock to wait at.
        exclude 'BusyWait'
    }
    ruleset('rulesets/convention.xml') {
        // Most classes call QuPath, whose classes are found when the script runs.
        exclude 'CompileStatic'
        // The last value of a method is what it returns.
        exclude 'ImplicitReturnStatement'
        // Methods stand in the order in which they are read.
        exclude 'StaticMethodsBeforeInstanceMethods'
        // Coordinates are doubles.
        exclude 'NoDouble'
    }
    ruleset('rulesets/design.xml') {
        // JSON is told apart by its values' types.
        exclude 'Instanceof'
        // Null says that there is none, which an empty collection does not.
        exclude 'ReturnsNullInsteadOfEmptyCollection'
    }
    ruleset('rulesets/dry.xml') {
        // Names of fields of the protocol and sentences read best in their place.
        exclude 'DuplicateStringLiteral'
        exclude 'DuplicateNumberLiteral'
    }
    ruleset('rulesets/exceptions.xml') {
        // Null says that there is none; the caller asks for that.
        exclude 'ReturnNullFromCatchBlock'
    }
    ruleset('rulesets/formatting.xml') {
        'SpaceAroundMapEntryColon' {
            characterAfterColonRegex = /\s/
        }
    }
    ruleset('rulesets/generic.xml')
    ruleset('rulesets/groovyism.xml')
    ruleset('rulesets/imports.xml')
    ruleset('rulesets/logging.xml') {
        // QuPath's log shows this name.
        exclude 'LoggerForDifferentClass'
    }
    ruleset('rulesets/naming.xml') {
        // Constants are told from methods by their capitals.
        exclude 'ConfusingMethodName'
    }
    ruleset('rulesets/security.xml') {
        // A rule for Enterprise Java Beans.
        exclude 'JavaIoPackageAccess'
    }
    ruleset('rulesets/serialization.xml') {
        // It alone compiles what it reads, which needs QuPath's classes: it reads those that do not.
        'NonSerializableFieldInSerializableClass' {
            applyToFilesMatching =
                /([a-z_]+|pathosam.(Json|PathosamClient|PathosamException|Progress|ServerProcess|Settings|Ui)).groovy/
        }
    }
    ruleset('rulesets/size.xml') {
        // It needs a record of the tests' coverage.
        exclude 'CrapMetric'
    }
    ruleset('rulesets/unnecessary.xml') {
        // A ROI has isArea() and getArea(); as a property the first is meant.
        exclude 'UnnecessaryGetter'
    }
    ruleset('rulesets/unused.xml')
}
